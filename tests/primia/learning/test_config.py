import pytest

from primia.errors import InvalidInput
from primia.learning.config import NO_AUGMENTATION, Augmentation, TrainingConfig

TWO_STEPS = {"algorithm": "fedsgd"}


@pytest.mark.parametrize(
    "lengths", [{"epochs": 1, "batches": 1}, {"epochs": 0}, {"batches": -1}, {"epochs": True}]
)
def test_a_round_has_at_most_one_length(lengths: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        TrainingConfig.parse(lengths)


def test_a_round_without_a_length_is_one_epoch() -> None:
    assert TrainingConfig().passes == 1
    assert TrainingConfig(epochs=3).passes == 3
    assert TrainingConfig(batches=3).passes is None


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"learning_rate": float("nan")},
        {"momentum": 1},
        {"batch_size": 1},
        {"optimiser": "lion"},
        {"augment": "yes please"},
        {"label_smoothing": 1},
        {"mixup": -1},
        {"clip_norm": 0},
        {"proximal": -0.1},
        {"precision": "int8"},
        {"class_weights": [1]},
        {"class_weights": [1, 0]},
        {"schedule": {"kind": "zigzag"}},
        {"schedule": {"final": 0}},
        {"schedule": {"warm_up": 0.9}},
        {"augmentation": {"rotation": 360}},
        {"augmentation": {"mirror": 2}},
        {"local_stopping": {"patience": 0}},
        {"nesterov": True},
        {"amsgrad": True, "optimiser": "sgd"},
        {**TWO_STEPS, "epochs": 2},
        {**TWO_STEPS, "batches": 2},
        {**TWO_STEPS, "proximal": 0.1},
        {**TWO_STEPS, "optimiser_state": "kept"},
        {**TWO_STEPS, "local_stopping": {"patience": 3}},
    ],
)
def test_a_wrong_config_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(
        InvalidInput, match=next(iter(change)) if len(change) == 1 else "fedsgd|Adam"
    ):
        TrainingConfig.parse(change)


def test_a_config_survives_json() -> None:
    config = TrainingConfig(
        optimiser="sgd",
        nesterov=True,
        class_weights=(1.0, 2.5),
        augmentation=Augmentation(rotation=10),
        local_stopping={"patience": 3, "when_stopped": "leave"},  # type: ignore[arg-type]
    )
    assert TrainingConfig.parse(config.model_dump_json()) == config


def test_class_weights_are_one_a_class() -> None:
    config = TrainingConfig(class_weights=(1.0, 2.0))
    config.check_classes(2)
    with pytest.raises(InvalidInput, match="2 class weights for 3 classes"):
        config.check_classes(3)


def test_no_augmentation_is_none_at_all() -> None:
    assert not any(NO_AUGMENTATION.model_dump().values())
