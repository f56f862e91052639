"""MONAI bundles as a site's own training: ``monai.fl.client.ClientAlgo`` between flat states.

A bundle is code: its configuration names what is imported and called. So it is the site's own, put
into a folder by its operator; nothing of it comes from a model owner, who knows the state's layout
alone. monai and ignite are an extra (``pip install 'primia-grid[monai]'``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from primia.errors import InvalidInput, LocalError, PrimiaError
from primia.learning.layout import Layout, Slot, Vector
from primia.learning.models import flatten, state_layout

TRAIN, EVALUATE = "configs/train.json", "configs/evaluate.json"
Stop = Callable[[], None]


class BundleFailed(LocalError):
    code = "bundle-failed"
    title = "The site's MONAI bundle failed"
    status = 409


class BundleMismatch(LocalError):
    code = "bundle-mismatch"
    title = "The bundle's network is not the model"
    status = 409


class Trained(NamedTuple):
    """``change``: float32 (layout.size,), trained minus received; ``samples``: of the bundle's
    training data set."""

    change: NDArray[np.float32]
    samples: int


def read_network(folder: Path) -> tuple[Layout, Vector]:
    """The layout and first weights of a bundle's ``network_def``: runs the bundle's own code."""
    _check_folder(folder)
    with _failures("read"):
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config(str(folder / TRAIN))
        network = parser.get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise InvalidInput(f"network_def of {folder.name} is no torch module.")
    return state_layout(network), flatten(network)


def open_bundle(folder: Path, name: str, images: Path, epochs: int, layout: Layout | str) -> Any:
    """A MonaiAlgo of the bundle, ready: ``images`` takes the place of its ``dataset_dir``.

    ``layout``: or its digest. Raises BundleMismatch for a network with another state.
    """
    _check_folder(folder)
    there = (folder / EVALUATE).is_file()
    with _failures("started"):
        from monai.fl.client import MonaiAlgo
        from monai.fl.utils.constants import ExtraItems

        algo = MonaiAlgo(
            bundle_root=str(folder),
            local_epochs=epochs,
            train_kwargs={"dataset_dir": str(images)},
            config_evaluate_filename=[TRAIN, EVALUATE] if there else None,
            eval_kwargs={"dataset_dir": str(images)},
        )
        algo.initialize({ExtraItems.CLIENT_NAME: name})
    wanted = layout if isinstance(layout, str) else layout.digest
    _check_digest(folder, layout_of(algo), wanted)
    return algo


def check_network(folder: Path, digest: str) -> None:
    """Whether the bundle's ``network_def`` has the layout of this digest: no images are needed.

    Raises InvalidInput, BundleFailed, or BundleMismatch.
    """
    _check_digest(folder, read_network(folder)[0], digest)


def _check_digest(folder: Path, found: Layout, wanted: str) -> None:
    if found.digest != wanted:
        raise BundleMismatch(
            f"The network of {folder.name} has the layout {found.digest}, not {wanted}.",
            hint="The bundle's network_def has to be the one that the model was registered with.",
        )


def layout_of(algo: Any) -> Layout:
    return state_layout(algo.trainer.network)


def train(algo: Any, layout: Layout, weights: Vector, stop: Stop = lambda: None) -> Trained:
    """One round of a ClientAlgo. ``stop`` is called after each batch and may raise.

    Raises BundleFailed for whatever goes wrong in the bundle, and for an answer that does not fit.
    """
    with _failures("trained", stop) as watched:
        from ignite.engine import Events
        from monai.fl.utils.constants import WeightType

        if getattr(algo, "trainer", None) is not None:
            algo.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _engine: watched())
        algo.train(_exchange(layout, weights), {})
        given = algo.get_weights({})
        kind, values = given.weight_type, given.weights
        samples = _samples(algo)
    if kind not in (WeightType.WEIGHTS, WeightType.WEIGHT_DIFF):
        raise BundleFailed(f"It gave back {kind!r}, neither weights nor differences.")
    found = _vector(layout, values or {})
    return Trained(found if kind == WeightType.WEIGHT_DIFF else found - weights, samples)


def evaluate(algo: Any, layout: Layout, weights: Vector) -> dict[str, float]:
    """The numbers among what the bundle measures; none where it has no evaluation."""
    if getattr(algo, "evaluator", None) is None:
        return {}
    with _failures("evaluated"):
        metrics = algo.evaluate(_exchange(layout, weights), {}).metrics or {}
    numbers = {
        str(name): float(value) for name, value in metrics.items() if isinstance(value, float | int)
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def evaluated_samples(algo: Any) -> int:
    evaluator = getattr(algo, "evaluator", None)
    return 0 if evaluator is None else len(evaluator.data_loader.dataset)


def close(algo: Any) -> None:
    with _failures("closed"):
        algo.finalize({})


def _check_folder(folder: Path) -> None:
    if not (folder / TRAIN).is_file():
        raise InvalidInput(f"{folder.name} is no MONAI bundle: it has no {TRAIN}.")


def _samples(algo: Any) -> int:
    count = len(algo.trainer.data_loader.dataset)
    if count < 1:
        raise BundleFailed("It has no images to train on.")
    return count


def _exchange(layout: Layout, weights: Vector) -> Any:
    from monai.fl.utils.constants import WeightType
    from monai.fl.utils.exchange_object import ExchangeObject

    tensors = {
        slot.name: torch.from_numpy(weights[slot.span].reshape(slot.shape).copy())
        for slot in layout.slots
    }
    return ExchangeObject(weights=tensors, weight_type=WeightType.WEIGHTS)


def _vector(layout: Layout, values: Mapping[str, Any]) -> NDArray[np.float32]:
    found = np.empty(layout.size, dtype=np.float32)
    for slot in layout.slots:
        found[slot.span] = _values(slot, values.get(slot.name))
    return found


def _values(slot: Slot, value: Any) -> NDArray[np.float32]:
    tensor = None if value is None else torch.as_tensor(value)
    if tensor is None or tuple(tensor.shape) != slot.shape:
        raise BundleFailed(f"It gave back no tensor {slot.name!r} of shape {slot.shape}.")
    made: NDArray[np.float32] = tensor.detach().float().cpu().reshape(-1).numpy()
    return made


@contextmanager
def _failures(what: str, stop: Stop = lambda: None) -> Iterator[Stop]:
    """What the bundle's code raises becomes BundleFailed; what ``stop`` raises stays as it is."""
    raised: list[BaseException] = []

    def watched() -> None:
        try:
            stop()
        except BaseException as error:
            raised.append(error)
            raise

    try:
        yield watched
    except PrimiaError:
        raise
    except ImportError as error:
        raise BundleFailed(
            f"A library that it needs is missing: {error}.",
            hint="pip install 'primia-grid[monai]', and what the bundle itself needs.",
        ) from error
    except Exception as error:  # a bundle's code raises whatever it likes
        if raised:
            raise raised[0] from None
        raise BundleFailed(f"It could not be {what}: {type(error).__name__}: {error}") from error
