"""What a model is, as checked values; nothing here imports torch.

``ModelSpec`` fixes everything that two parties must agree on to hold the same function: the
architecture, the class names in the order of the outputs, the input and its normalisation, and the
seed of the first weights. It is frozen, refuses unknown fields, and serves as JSON in a request
body as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from primia.errors import InvalidInput
from primia.learning.layout import Layout
from primia.learning.programs.document import Program
from primia.learning.programs.shapes import check, classes, cost

ArchitectureName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "densenet121",
    "mobilenet",
    "lenet",
    "small_cnn",
    "unet",
    "program",  # of the user's own: learning.programs
    "external",  # whose code only the sites have: learning.bundles
]
NormName = Literal["batch", "group"]
Task = Literal["classification", "segmentation"]

WITHOUT_NORM: frozenset[ArchitectureName] = frozenset({"vgg16", "lenet"})
MAX_CLASSES = 1000  # ImageNet's
MAX_LABEL_LENGTH = 64
MAX_TENSORS = 4_000
MAX_VALUES = 1 << 29  # of an external model's state
# A seed travels as JSON, where integers above 2^53 lose digits in some readers.
MAX_SEED = 2**53 - 1


class Architecture(NamedTuple):
    """An entry of the catalogue; sizes are pixels a side. ``encrypted``: whether the plan compiler
    takes it (with BatchNorm or without any norm; GroupNorm it refuses)."""

    name: ArchitectureName
    description: str
    smallest_image: int
    largest_image: int
    encrypted: bool = True


def architectures() -> tuple[Architecture, ...]:
    """The models that can be created and trained, and, but for some, compiled for encrypted
    inference."""
    vgg = "VGG-16 (Simonyan and Zisserman, 2015), 134 million parameters"
    dense = "DenseNet-121 (Huang et al., 2017), 7 million parameters: for training"
    return (
        Architecture("resnet18", "ResNet-18 (He et al., 2016), 11.2 million parameters", 32, 512),
        Architecture("resnet34", "ResNet-34 (He et al., 2016), 21.3 million parameters", 32, 512),
        Architecture("resnet50", "ResNet-50 (He et al., 2016), 23.5 million parameters", 32, 512),
        Architecture("vgg16", f"{vgg}, without norms", 32, 512),
        Architecture("vgg16_bn", f"{vgg}, with BatchNorm", 32, 512),
        Architecture("densenet121", dense, 32, 512, encrypted=False),
        Architecture("mobilenet", "MobileNet (Howard et al., 2017), 3.2 million", 32, 512),
        Architecture("lenet", "LeNet-5 (LeCun et al., 1998), 61 thousand at 32 pixels", 16, 256),
        Architecture("small_cnn", "Three convolutions, 24 thousand parameters: trials", 16, 256),
        Architecture(
            "unet",
            "U-Net (Ronneberger et al., 2015), 7.8 million at width 32: masks, training only",
            32,
            512,
            encrypted=False,
        ),
    )


def architecture(name: str) -> Architecture:
    if name == "program":
        return Architecture("program", "A program of the user's own", 16, 512)
    if name == "external":
        return Architecture("external", "Code of the sites' own", 16, 512, encrypted=False)
    for entry in architectures():
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in architectures())
    raise InvalidInput(f"There is no architecture {name!r}.", hint=f"Choose one of: {known}.")


def task_of(name: str) -> Task:
    """What an architecture gives: a class for an image, or one for every pixel."""
    return "segmentation" if name == "unet" else "classification"


def check_label(label: str) -> str:
    """A class name as given, if it can be one: 1 to 64 printable characters, no outer space."""
    if not label or len(label) > MAX_LABEL_LENGTH:
        raise ValueError(f"a class name has 1 to {MAX_LABEL_LENGTH} characters")
    if label != label.strip() or not label.isprintable():
        raise ValueError("a class name has printable characters and no space at its ends")
    return label


Label = Annotated[StrictStr, AfterValidator(check_label)]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mean = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[StrictInt, Field(ge=8, le=64, multiple_of=8)]
Deviation = Annotated[float, Field(ge=0.01, le=1)]


class Checked(BaseModel):
    """Frozen, without unknown fields; ``parse`` turns what pydantic finds into our error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, value: bytes | str | Mapping[str, object]) -> Self:
        """From JSON text or a mapping. Raises InvalidInput, which names each field at fault."""
        try:
            if isinstance(value, bytes | str):
                return cls.model_validate_json(value)
            return cls.model_validate(value)
        except ValidationError as error:
            raise InvalidInput(f"{cls.__name__}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """One line: each field at fault with the reason."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )


class StateTensor(Checked):
    """A tensor of an external model's state: trained, or a floating-point buffer."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=300, pattern=r"^[\x21-\x7e]+$")]
    shape: Annotated[tuple[Annotated[StrictInt, Field(ge=1, le=2**24)], ...], Field(max_length=8)]
    group: Literal["parameters", "buffers"]


class ModelSpec(Checked):
    """The function that is trained and later evaluated under encryption.

    Input: uint8 pixels v, shape (channels, image_size, image_size), seen by the model as
    (v / 255 - mean) / std, with one mean and deviation or one for each channel. Output: one logit a
    class, in the order of ``classes``; for segmentation one a class and pixel, the first class
    being the background.
    """

    architecture: ArchitectureName = "resnet18"
    classes: Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    channels: Literal[1, 3] = 1
    image_size: StrictInt = 64
    seed: Seed = 0
    norm: NormName = "batch"
    mean: Mean | Annotated[tuple[Mean, ...], Field(min_length=1, max_length=3)] = 0.5
    std: Deviation | Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=3)] = 0.25
    width: Width = Field(default=32, description="of a U-Net: channels at full resolution")
    program: Program | None = Field(
        default=None, description="layers and steps of the architecture 'program'"
    )

    layout: Annotated[tuple[StateTensor, ...], Field(max_length=MAX_TENSORS)] | None = Field(
        default=None, description="the state of an 'external' model, parameters first"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.layout is None) != (self.architecture != "external"):
            raise ValueError("layout: the architecture 'external' has one, and no other has")
        if self.layout is not None:
            _check_layout(self.layout)
        if (self.program is None) != (self.architecture != "program"):
            raise ValueError("program: the architecture 'program' has one, and no other has")
        entry = architecture(self.architecture)
        if not entry.smallest_image <= self.image_size <= entry.largest_image:
            raise ValueError(
                f"image_size: {self.architecture} takes {entry.smallest_image} to "
                f"{entry.largest_image} pixels, not {self.image_size}"
            )
        if self.architecture == "unet" and self.image_size % 16:
            raise ValueError(f"image_size: unet takes multiples of 16, not {self.image_size}")
        if self.norm == "group" and self.architecture in WITHOUT_NORM:
            raise ValueError(f"norm: {self.architecture} has no norms to choose")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, tuple) and len(values) != self.channels:
                raise ValueError(f"{name}: {len(values)} values for {self.channels} channels")
        if self.program is not None:
            self._check_program(self.program)
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise ValueError(f"classes: {', '.join(repeated)} stands there twice")
        return self

    def _check_program(self, program: Program) -> None:
        check(program)
        try:
            cost(program, self.input_shape)
            given = classes(program, self.input_shape)
        except InvalidInput as error:
            raise ValueError(f"program: {error.detail}") from None
        if given != len(self.classes):
            raise ValueError(f"program: it gives {given} scores for {len(self.classes)} classes")
        if self.norm == "group":
            raise ValueError("norm: a program has its own norms; leave it at its default")

    def state_layout(self) -> Layout:
        """Of an external model."""
        return Layout.of([(each.name, each.shape, each.group) for each in self.layout or ()])

    @property
    def layout_digest(self) -> str | None:
        return self.state_layout().digest if self.layout else None

    @property
    def task(self) -> Task:
        return task_of(self.architecture)

    @property
    def mixes_images(self) -> bool:
        """Whether it has BatchNorm, by which the images of a batch bear on one another."""
        if self.program is not None:
            return self.program.mixes_images
        return self.norm == "batch" and self.architecture not in WITHOUT_NORM

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return (self.channels, self.image_size, self.image_size)


def _check_layout(tensors: tuple[StateTensor, ...]) -> None:
    if len({each.name for each in tensors}) != len(tensors):
        raise ValueError("layout: a tensor is named twice")
    groups = [each.group for each in tensors]
    if not groups or groups[0] != "parameters" or groups != sorted(groups, reverse=True):
        raise ValueError("layout: parameters come first, and there is one at least")
    values = sum(math.prod(each.shape) for each in tensors)
    if values > MAX_VALUES:
        raise ValueError(f"layout: {values} values; at most {MAX_VALUES} are taken")
