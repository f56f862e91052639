import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from primia.errors import InvalidInput
from primia.learning.carried import Carried
from primia.learning.config import LocalStopping, Schedule, TrainingConfig
from primia.learning.images import normalise
from primia.learning.models import create_model, flatten, state_layout
from primia.learning.schedules import Span
from primia.learning.spec import ModelSpec
from primia.learning.training import (
    ImageData,
    TrainingDiverged,
    TrainingStopped,
    evaluate,
    local_seed,
    pick_device,
    predict,
    train_locally,
)
from primia.prg import Seed, Stream

SPEC = ModelSpec(architecture="small_cnn", classes=("dark", "light"), image_size=16)
CONFIG = TrainingConfig(epochs=1, batch_size=8, learning_rate=0.05)


def _data(count: int, spec: ModelSpec = SPEC) -> ImageData:
    """Noise, brighter for class 1: easy to tell apart."""
    stream = Stream(Seed(bytes(16)), "training test")
    labels = np.arange(count, dtype=np.int64) % 2
    noise = stream.words((count, *spec.input_shape), bits=7)
    pixels = (noise + 60 * labels[:, None, None, None]).astype(np.uint8)
    return ImageData.of(pixels, labels, spec)


def test_training_learns_and_says_what_it_did() -> None:
    module = create_model(SPEC)
    before = evaluate(module, _data(64))
    result = train_locally(module, _data(64), CONFIG.model_copy(update={"epochs": 6}), seed=1)
    after = evaluate(module, _data(64))
    assert after.accuracy > 0.95
    assert after.loss < before.loss
    assert (result.batches, result.samples) == (48, 6 * 64)
    assert 0 < result.loss < 1
    assert 0.5 < result.accuracy <= 1
    assert result.seconds > 0


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_the_same_seed_gives_the_same_weights(optimiser: str) -> None:
    config = TrainingConfig.parse({"epochs": 1, "optimiser": optimiser, "learning_rate": 1e-3})
    weights = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(weights))
        module = create_model(SPEC)
        train_locally(module, _data(40), config, seed)
        weights.append(flatten(module))
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_seeds_differ_by_run_round_and_node() -> None:
    seeds = {local_seed(*key) for key in [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert local_seed(0, 1, "a") == 7328396826672057809


def test_threads_do_not_disturb_one_another() -> None:
    def work(place: int) -> None:
        module = create_model(SPEC)
        train_locally(module, _data(40), CONFIG, seed=place)
        found[place] = flatten(module)

    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(found)
    for place in range(3):
        work(place)
        assert np.array_equal(found[place], together[place])


def test_no_global_state_of_torch_is_changed() -> None:
    before = (
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    module = create_model(SPEC)
    train_locally(module, _data(16), CONFIG, seed=1)
    evaluate(module, _data(16))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert before[1:] == (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize(
    ("images", "lengths", "batches", "samples"),
    [
        (17, {"epochs": 2}, 4, 32),  # the image left over is left out
        (18, {"epochs": 2}, 6, 36),
        (20, {"batches": 7}, 7, 48),  # 8 8 4, 8 8 4, 8
        (3, {"epochs": 1}, 1, 3),
    ],
)
def test_lengths_of_a_round(
    images: int, lengths: dict[str, int], batches: int, samples: int
) -> None:
    config = TrainingConfig(batch_size=8, learning_rate=0.01, **lengths)  # type: ignore[arg-type]
    steps: list[tuple[int, int]] = []
    result = train_locally(
        create_model(SPEC),
        _data(images),
        config,
        seed=0,
        progress=lambda done, total, loss: steps.append((done, total)),
    )
    assert (result.batches, result.samples) == (batches, samples)
    assert steps == [(number, batches) for number in range(1, batches + 1)]


def test_running_statistics_are_those_of_the_final_weights() -> None:
    module = create_model(SPEC)
    data = _data(100)
    train_locally(module, data, CONFIG, seed=0)
    with torch.no_grad():
        first = module.get_submodule("0")(data.batch(np.arange(100), torch.device("cpu"))[0])
    norm = module.get_submodule("1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert torch.allclose(norm.get_buffer("running_mean"), first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.get_buffer("running_var"), first.var((0, 2, 3)), rtol=0.05)
    assert norm.momentum == 0.1


def _after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_training_stops_before_the_next_batch() -> None:
    with pytest.raises(TrainingStopped, match="before batch 3 of 5"):
        train_locally(create_model(SPEC), _data(40), CONFIG, 0, should_stop=_after(2))
    with pytest.raises(TrainingStopped):
        predict(create_model(SPEC), _data(40), should_stop=lambda: True)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    config = TrainingConfig(batches=60, batch_size=8, learning_rate=10, momentum=0.99)
    module = create_model(SPEC)
    with torch.no_grad():
        module.get_submodule("14").get_parameter("weight").fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match="batch 1 of 60") as found:
        train_locally(module, _data(16), config, seed=0)
    assert "learning rate" in str(found.value)


def test_too_few_images() -> None:
    with pytest.raises(InvalidInput, match="at least two images"):
        train_locally(create_model(SPEC), _data(1), CONFIG, seed=0)
    with pytest.raises(InvalidInput, match="no images"):
        evaluate(create_model(SPEC), _data(0))


def test_data_that_does_not_fit_the_model() -> None:
    good = _data(4)
    with pytest.raises(InvalidInput, match=r"\(1, 16, 16\)"):
        ImageData.of(np.zeros((4, 3, 16, 16), np.uint8), good.labels, SPEC)
    with pytest.raises(InvalidInput, match="float32"):
        ImageData.of(good.pixels.astype(np.float32), good.labels, SPEC)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="4 images have 3 labels"):
        ImageData.of(good.pixels, good.labels[:3], SPEC)
    with pytest.raises(InvalidInput, match="class numbers"):
        ImageData.of(good.pixels, good.labels + 1, SPEC)


def test_batches_are_normalised_as_inference_does_it() -> None:
    data = _data(6)
    images, labels = data.batch(np.array([4, 1]), torch.device("cpu"))
    expected = normalise(data.pixels[[4, 1]], SPEC.mean, SPEC.std)
    assert np.array_equal(images.numpy(), expected)
    assert labels.tolist() == [0, 1]


def test_evaluation_counts_by_class() -> None:
    module = create_model(SPEC)
    train_locally(module, _data(64), CONFIG.model_copy(update={"epochs": 4}), seed=1)
    data = _data(70)  # more than one batch of evaluation
    found = evaluate(module, data)
    logits = predict(module, data)
    right = logits.argmax(axis=1) == data.labels
    assert found.samples == sum(map(sum, found.confusion)) == 70
    assert [sum(row) for row in found.confusion] == [35, 35]
    assert found.accuracy == pytest.approx(right.mean())
    assert found.sensitivity[1] == pytest.approx(right[data.labels == 1].mean())
    assert not module.training


def test_the_sensitivity_of_an_absent_class_is_nan() -> None:
    data = _data(8)
    only = ImageData(data.pixels[::2], data.labels[::2], data.mean, data.std)
    assert np.isnan(evaluate(create_model(SPEC), only).sensitivity[1])


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
    else:
        assert pick_device("auto").type == "cpu"
        with pytest.raises(InvalidInput, match="no CUDA device"):
            pick_device("cuda")


OPTIMISERS = ["sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta"]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_kept_moments_are_those_of_one_long_training(optimiser: str) -> None:
    """Two rounds of one epoch with the state kept equal what torch's optimiser does in one go."""
    rate = 1.0 if optimiser == "adadelta" else 0.01  # Adadelta's steps are small by themselves
    config = TrainingConfig.parse(
        {"batches": 2, "batch_size": 40, "optimiser": optimiser, "learning_rate": rate,
         "augment": False, "optimiser_state": "kept"}
    )  # fmt: skip
    module = create_model(SPEC)
    carried = None
    for seed in (1, 2):
        carried = train_locally(module, _data(40), config, seed, carried=carried).carried
        carried = Carried.from_bytes(carried.to_bytes())
    whole = create_model(SPEC)
    train_locally(whole, _data(40), config.model_copy(update={"batches": 4}), 1)
    # batches of all images: the order within a batch is all that differs
    assert np.allclose(flatten(module), flatten(whole), atol=2e-3)
    afresh = create_model(SPEC)
    for seed in (1, 2):
        train_locally(afresh, _data(40), config, seed)
    if optimiser not in ("sgd", "adagrad", "rmsprop"):
        assert not np.allclose(flatten(module), flatten(afresh), atol=2e-3)


def test_the_schedule_sets_the_rate_of_every_batch() -> None:
    seen = []
    stepped = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, closure: None = None) -> None:
        seen.append(self.param_groups[0]["lr"])
        stepped(self, closure)

    config = TrainingConfig(
        batches=4, optimiser="sgd", learning_rate=0.1, schedule=Schedule(kind="linear", final=0.2)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        train_locally(create_model(SPEC), _data(16), config, 0, span=Span.of_round(1, 2))
    assert seen == pytest.approx([0.06, 0.05, 0.04, 0.03])


@pytest.mark.parametrize(("count", "batches"), [(40, 3), (33, 2), (32, 2), (17, 1)])
def test_federated_sgd_takes_one_step_along_the_mean_gradient(count: int, batches: int) -> None:
    """Over all images, a single one that is left over as well."""
    data = _data(count)
    config = TrainingConfig(algorithm="fedsgd", learning_rate=0.5, batch_size=16, augment=False)
    module, reference = create_model(SPEC).eval(), create_model(SPEC)
    # without BatchNorm the gradient over the batches is the gradient over all
    for each in (module, reference):
        for number in (1, 5, 9):
            each[number] = torch.nn.Identity()  # type: ignore[operator]
    before = flatten(module)
    result = train_locally(module, data, config, seed=1)
    images, labels = data.batch(np.arange(count), torch.device("cpu"))
    torch.nn.functional.cross_entropy(reference(images), labels).backward()
    gradient = np.concatenate([p.grad.reshape(-1).numpy() for p in reference.parameters()])
    assert (result.batches, result.samples) == (batches, count)
    assert np.allclose(flatten(module), before - 0.5 * gradient, atol=1e-5)


@pytest.mark.parametrize("count", [16, 40])
def test_the_step_of_federated_sgd_has_the_rate_of_its_round_at_every_site(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches a site has: the mean of the changes is along the mean gradient."""
    seen = []
    stepped = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, closure: None = None) -> None:
        seen.append(self.param_groups[0]["lr"])
        stepped(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    config = TrainingConfig(
        algorithm="fedsgd", learning_rate=0.1, batch_size=8, schedule=Schedule(kind="linear")
    )
    span = Span.of_round(1, 2)
    train_locally(create_model(SPEC), _data(count), config, 0, span=span)
    assert seen == pytest.approx([0.1 * (1 - 0.99 * 0.5)])


def test_the_proximal_term_holds_the_weights_near_the_global_ones() -> None:
    def moved(proximal: float) -> float:
        module = create_model(SPEC)
        before = flatten(module)
        config = TrainingConfig(epochs=4, optimiser="sgd", learning_rate=0.05, proximal=proximal)
        train_locally(module, _data(64), config, seed=1)
        size = state_layout(module).group_size("parameters")
        return float(np.linalg.norm((flatten(module) - before)[:size]))

    distances = [moved(proximal) for proximal in (0, 1, 10)]
    assert distances == sorted(distances, reverse=True)


def test_a_clipped_gradient_moves_the_weights_by_no_more_than_its_norm() -> None:
    module = create_model(SPEC)
    before = flatten(module)
    config = TrainingConfig(batches=1, optimiser="sgd", momentum=0, learning_rate=1, clip_norm=1e-3)
    train_locally(module, _data(32), config, seed=1)
    size = state_layout(module).group_size("parameters")
    assert np.linalg.norm((flatten(module) - before)[:size]) == pytest.approx(1e-3, rel=1e-2)


def test_early_stopping_restores_the_best_weights_and_ends_training_for_good() -> None:
    """At a rate far too high nothing gets better than the incoming model."""
    rule = LocalStopping(patience=2)
    config = TrainingConfig(
        epochs=9, optimiser="sgd", learning_rate=5.0, batch_size=8, local_stopping=rule
    )
    module = create_model(SPEC)
    train_locally(module, _data(64), CONFIG.model_copy(update={"epochs": 6}), seed=1)
    good = evaluate(module, _data(64)).loss
    result = train_locally(module, _data(64), config, seed=2, validation=_data(64))
    assert result.carried.standing.stopped
    assert result.batches < 9 * 8
    assert evaluate(module, _data(64)).loss <= good
    before = flatten(module)
    again = train_locally(
        module, _data(64), config, seed=3, validation=_data(64), carried=result.carried
    )
    assert np.array_equal(flatten(module), before)
    assert (again.batches, again.samples, again.carried) == (0, 64, result.carried)


def test_early_stopping_goes_on_from_round_to_round() -> None:
    config = TrainingConfig(
        epochs=1, optimiser="sgd", learning_rate=1e-6, local_stopping=LocalStopping(min_change=1)
    )
    module, carried, waited = create_model(SPEC), None, []
    for seed in range(3):
        done = train_locally(module, _data(32), config, seed, validation=_data(32), carried=carried)
        carried = Carried.from_bytes(done.carried.to_bytes())
        waited.append(carried.standing.waited)
    assert waited == [0, 1, 2]


def test_dropout_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    weights = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        module = create_model(SPEC)
        module.add_module("dropout", torch.nn.Dropout(0.5))
        train_locally(module, _data(40), CONFIG, seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(flatten(module))
    assert np.array_equal(*weights)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"mixup": 0.4},
        {"class_weights": (1.0, 3.0)},
        {"precision": "mixed"},
        {"schedule": {"kind": "cosine", "warm_up": 0.1, "restarts": 1}},
    ],
)
def test_every_option_learns(options: dict[str, object]) -> None:
    config = TrainingConfig.parse({"epochs": 5, "batch_size": 8, "learning_rate": 0.05, **options})
    module = create_model(SPEC)
    train_locally(module, _data(64), config, seed=1)
    assert evaluate(module, _data(64)).accuracy > 0.9
