"""How a site trains, as one typed configuration with defaults that work; nothing imports torch.

The same values serve as JSON in a request, travel in the proposal that every site approves, and
steer local training: what is checked here is checked before any node is asked for anything.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from primia.errors import InvalidInput
from primia.learning.hyperparameters import DEFAULTS, FEDSGD, Hyperparameters, OptimiserName
from primia.learning.spec import MAX_CLASSES, Checked

Algorithm = Literal["fedavg", "fedsgd"]
Measured = Literal["loss", "accuracy"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Patience = Annotated[StrictInt, Field(ge=1, le=10_000)]


class Schedule(Checked):
    """The learning rate over the whole run, as a factor of ``learning_rate`` (schedules.py)."""

    kind: Literal["constant", "linear", "cosine", "log_linear"] = "constant"
    warm_up: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="share of the run in which the rate rises linearly from near zero"
    )
    final: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01, description="factor at the end of each descent"
    )
    restarts: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        default=0, description="how often the descent starts anew from the full rate"
    )


class Stopping(Checked):
    """When nothing gets better any more: ``patience`` checks in succession whose measure is not
    better than the best one before by more than ``min_change``."""

    measure: Measured = "loss"
    patience: Patience = 5
    min_change: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0

    def better(self, found: float, best: float | None) -> bool:
        if best is None:
            return True
        gain = best - found if self.measure == "loss" else found - best
        return gain > self.min_change


class ServerOptimiser(Checked):
    """What the owner does with the opened mean of the sites' changes (server.py)."""

    kind: Literal["average", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = "average"
    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="default: 1, for the adaptive ones 0.01"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    second_moment: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1e-3, description="how adaptive: smaller steps for what is far below it"
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if self.kind == "average" and self.learning_rate is not None:
            raise ValueError("averaging has no learning rate: choose fedavgm or another kind")
        return self

    @property
    def adaptive(self) -> bool:
        return self.kind in ("fedadagrad", "fedadam", "fedyogi")

    @property
    def rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.01 if self.adaptive else 1.0


class LocalStopping(Stopping):
    """At each site, on its own validation images, after each epoch or round (the shorter).

    A site that has stopped does not train any more in this run. It ``leaves`` the rounds to the
    others, or goes on to ``contribute`` the weights that it receives, unchanged: that hides nobody
    in a secure sum, and is for runs without one (or with noise in it).
    """

    restore_best: StrictBool = Field(
        default=True, description="a round that ends by stopping gives its best weights"
    )
    when_stopped: Literal["contribute", "leave"] = "leave"


class Augmentation(Checked):
    """Chances and largest strengths of the variations of training images (augmentation.py), drawn
    anew for every image of every epoch. The defaults change no class of a radiograph."""

    mirror: Share = Field(default=0.5, description="chance of left for right")
    flip: Share = Field(default=0.0, description="chance of top for bottom")
    translation: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=1 / 16, description="of the side, each way"
    )
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(default=0.0, description="degrees")
    scale: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="1 ± this")
    shear: Annotated[float, Field(ge=0, le=45)] = Field(default=0.0, description="degrees")
    crop: Annotated[float, Field(ge=0, le=0.75)] = Field(
        default=0.0, description="largest share of each side that is cut away before resizing"
    )
    contrast: Annotated[float, Field(ge=0, le=0.9)] = Field(default=0.1, description="1 ± this")
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="± this, in units of the normalising deviation"
    )
    gamma: Annotated[float, Field(ge=0, le=0.9)] = Field(
        default=0.0, description="exponent 1 ± this"
    )
    blur: Share = Field(default=0.0, description="chance of a Gaussian blur, σ 0.3 to 1.5 pixels")
    noise: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="largest deviation of Gaussian noise, of the grey range"
    )
    elastic: Annotated[float, Field(ge=0, le=0.2)] = Field(
        default=0.0, description="largest displacement, of the side (Simard et al., 2003)"
    )
    grid: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="distortion of a grid of 5 × 5 cells, of their side"
    )
    optical: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="coefficient of radial distortion"
    )
    clahe: Share = Field(
        default=0.0, description="chance of contrast-limited adaptive equalisation"
    )
    equalise: Share = Field(default=0.0, description="chance of histogram equalisation")
    solarise: Share = Field(default=0.0, description="chance of inverting what is bright")
    cutout: Share = Field(
        default=0.0, description="chance of a grey square of up to a quarter of the side"
    )


NO_AUGMENTATION = Augmentation(mirror=0, translation=0, contrast=0, brightness=0)


class TrainingConfig(Checked):
    """A round of local training; at most one of ``epochs`` and ``batches`` states its length (one
    epoch where neither does).

    The defaults train ResNet-18 from scratch on a few hundred images a site in a few rounds
    (benchmarks/federated_defaults.py): Adam at 3e-4 gets ahead where SGD still warms up, and
    larger steps drift apart between the sites. ``momentum`` is Adam's first coefficient too. What
    is left out of an optimiser's coefficients has that optimiser's default; what it has none of is
    ignored, so that a search may vary the optimiser (``hyperparameters``).
    """

    algorithm: Algorithm = Field(
        default="fedavg",
        description="fedsgd: one step a round along the gradient over all of a site's images",
    )
    epochs: Annotated[StrictInt, Field(ge=1, le=1000)] | None = Field(
        default=None, description="passes over the site's images a round"
    )
    batches: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="batches a round, instead of epochs"
    )
    batch_size: Annotated[StrictInt, Field(ge=2, le=1024)] = 32
    optimiser: OptimiserName = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="default: Adam, AdamW, NAdam and RMSprop 3e-4, Adamax 6e-4, RAdam 1e-3, "
        "SGD and Adagrad 0.01, Adadelta 1; fedsgd 0.1",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="default: SGD and Adam's kin 0.9, RMSprop 0; Adagrad, Adadelta and fedsgd "
        "have none and ignore it",
    )
    second_moment: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="decay of the squared gradients; default: Adam's kin 0.999, RMSprop 0.99, "
        "Adadelta 0.9; SGD, Adagrad and fedsgd have none and ignore it",
    )
    nesterov: StrictBool = False
    amsgrad: StrictBool = False
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="default: AdamW 0.01, the others 0"
    )
    optimiser_state: Literal["reset", "kept"] = Field(
        default="reset", description="kept: each site's moments go on from its last round"
    )
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="largest L2 norm of a batch's gradient"
    )
    proximal: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="FedProx's μ: pull towards the round's global model"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="α of MixUp's Beta(α, α); 0: none"
    )
    class_weights: (
        Annotated[
            tuple[Annotated[float, Field(gt=0, le=1e4)], ...],
            Field(min_length=2, max_length=MAX_CLASSES),
        ]
        | None
    ) = Field(default=None, description="of the loss, in the order of the model's classes")
    precision: Literal["float32", "mixed"] = Field(
        default="float32", description="mixed: half precision where a GPU trains"
    )
    augment: StrictBool = True
    augmentation: Augmentation = Augmentation()
    local_stopping: LocalStopping | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.batches is not None:
            raise ValueError("give epochs or batches, not both")
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise ValueError("nesterov is a way of SGD with momentum")
        if self.amsgrad and self.optimiser not in ("adam", "adamw"):
            raise ValueError("amsgrad is a way of Adam and AdamW")
        if self.algorithm == "fedsgd":
            self._check_fedsgd()
        return self

    def _check_fedsgd(self) -> None:
        """FedSGD (McMahan et al., 2017): a site sends its gradient; there is nothing to tune but
        the rate."""
        if self.epochs is not None or self.batches is not None:
            raise ValueError("fedsgd takes one pass over all images: give no epochs, no batches")
        if self.proximal or self.optimiser_state == "kept" or self.local_stopping:
            raise ValueError(
                "fedsgd takes one step from the global model: no proximal term, no optimiser "
                "state, no local stopping"
            )

    def check_classes(self, classes: int) -> None:
        """Raises InvalidInput for class weights of another number of classes."""
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise InvalidInput(
                f"There are {len(self.class_weights)} class weights for {classes} classes.",
                hint="Give one weight a class, in the order of the model's classes.",
            )

    def check_masks(self) -> None:
        """Raises InvalidInput for what segmentation does not have."""
        reasons = self.unfit_for_masks()
        if reasons:
            raise InvalidInput(
                f"Segmentation: {'; '.join(reasons)}.", hint="Leave it at its default."
            )

    def unfit_for_masks(self) -> list[str]:
        """Why segmentation cannot be trained with these settings."""
        found = []
        if self.mixup:
            found.append("mixup blends the classes of two images; a pixel of a mask has one class")
        if self.class_weights is not None:
            found.append(
                "class_weights are of images; soft Dice weighs the classes of pixels alike"
            )
        return found

    @property
    def hyperparameters(self) -> Hyperparameters:
        """What the optimiser steps with."""
        usual = FEDSGD if self.algorithm == "fedsgd" else DEFAULTS[self.optimiser]
        return usual.but(
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            second_moment=self.second_moment,
            weight_decay=self.weight_decay,
        )

    def resolved(self) -> Self:
        """With the optimiser's coefficients written out; None: it has no such one."""
        return self.model_copy(update=self.hyperparameters._asdict())

    @property
    def passes(self) -> int | None:
        """Epochs a round; None where the round is counted in batches."""
        return None if self.batches is not None else self.epochs or 1
