import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from primia.aggregation.plain import WeightedMean
from primia.aggregation.terms import Groups
from primia.cli.main import create_app
from primia.errors import InvalidInput
from primia.learning.carried import Carried
from primia.learning.config import LocalStopping, ServerOptimiser
from primia.learning.spec import ModelSpec
from primia.learning.stopper import Standing
from primia.learning.synthetic import draw_dataset
from primia.messages.rounds import TrainingSettings
from primia.simulation import modes
from primia.simulation.comparing import compare, trials
from primia.simulation.modes import Plan, participants, train
from primia.simulation.secure import secure_mean
from primia.simulation.sites import Setting, Wanted, listed, load

PLAN = Plan(2, TrainingSettings(image_size=32, batch_size=8, learning_rate=3e-3))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    draw_dataset(root / "set", 30, 15, 1)
    return root / "set"


@pytest.fixture(scope="module")
def setting(images: Path) -> Setting:
    spec = ModelSpec(architecture="small_cnn", classes=listed(images).classes, image_size=32)
    return load(images, spec, Wanted(sites=3, validation=0.2))


def test_sites_share_no_image_with_one_another_or_the_test(setting: Setting) -> None:
    parts = [site.training for site in setting.sites] + [setting.test]
    parts += [site.validation for site in setting.sites if site.validation is not None]
    seen = [pixels.tobytes() for part in parts for pixels in part.pixels]
    assert len(set(seen)) == len(seen) == sum(len(part) for part in parts)
    pooled = setting.pooled()
    assert len(pooled.training) == sum(len(site.training) for site in setting.sites)


def test_plain_and_secure_differ_by_the_quantisation_alone(setting: Setting) -> None:
    plain = train(setting.sites, setting.spec, PLAN)
    secure = train(setting.sites, setting.spec, PLAN, secure=True)
    assert np.abs(plain - secure).max() < 1e-3
    assert not np.array_equal(plain, secure)
    assert np.array_equal(plain, train(setting.sites, setting.spec, PLAN))


def test_the_secure_mean_is_the_weighted_mean() -> None:
    groups = Groups(40, 2)
    changes = {f"site-{k}": np.linspace(-1, k, 42, dtype=np.float32) for k in range(4)}
    samples = {name: 10 + k for k, name in enumerate(changes)}
    exact = WeightedMean(42)
    for name, change in changes.items():
        exact.add(change, samples[name])
    found = secure_mean(changes, samples, groups)
    assert np.abs(found - exact.result()).max() < 1e-6


def test_a_mode_is_a_choice_of_sites(setting: Setting) -> None:
    assert [len(sites) for sites in participants("local", setting).values()] == [1, 1, 1]
    assert list(participants("pooled", setting)) == ["pooled"]
    assert participants("plain", setting) == {"federated, plain": setting.sites}
    alone = Setting(setting.spec, setting.sites[:1], setting.test)
    with pytest.raises(InvalidInput, match="two sites"):
        participants("secure", alone)


def test_the_server_optimiser_is_the_services(setting: Setting) -> None:
    plan = Plan(1, PLAN.training, ServerOptimiser(kind="fedavgm", momentum=0, learning_rate=1))
    averaged = train(setting.sites, setting.spec, Plan(1, PLAN.training))
    assert np.allclose(train(setting.sites, setting.spec, plan), averaged, atol=1e-6)


def test_a_private_training_costs_each_site_its_epsilon(setting: Setting) -> None:
    wanted = trials(setting, PLAN, ["plain"], [8.0])
    assert [trial.name for trial in wanted] == ["federated, plain", "federated, secure, ε = 8"]
    private = wanted[1]
    assert private.spec.norm == "group"
    assert private.plan.dp is not None
    small = replace(private, sites=setting.sites[:2], plan=replace(private.plan, rounds=1))
    found = compare(setting, [small]).outcomes[0]
    assert found.figures.samples == len(setting.test)
    mixing = replace(small, spec=setting.spec)
    with pytest.raises(InvalidInput, match="BatchNorm"):
        compare(setting, [mixing])


def test_what_cannot_be_trained_is_refused_before_anything_is(setting: Setting) -> None:
    """The private trial comes last: nobody should wait for the others first."""
    begun: list[str] = []
    for change, epsilons, said in (
        ({"mixup": 0.2}, [8.0], "without mixup"),
        ({}, [8.0, 1e-6], "too small for"),
        ({"class_weights": (1.0,) * 9}, [], "9 class weights"),
    ):
        plan = replace(PLAN, training=PLAN.training.model_copy(update=change))
        wanted = trials(setting, plan, ["plain"], epsilons)
        with pytest.raises(InvalidInput, match=said):
            compare(setting, wanted, lambda name, _done, _of: begun.append(name))
    bare = replace(setting, sites=tuple(replace(s, validation=None) for s in setting.sites))
    stopping = PLAN.training.model_copy(update={"local_stopping": LocalStopping()})
    with pytest.raises(InvalidInput, match="site-a has no validation images"):
        train(bare.sites, bare.spec, replace(PLAN, training=stopping))
    assert begun == []


def test_the_command_compares_all_modes(images: Path) -> None:
    words = ["simulate", str(images), "--modes", "secure,local,plain,pooled", "--rounds", "1"]
    words += ["--architecture", "small_cnn", "--image-size", "32", "--format", "json"]
    answer = CliRunner().invoke(create_app(), [*words, "--set", "training.batch_size=8"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.output)
    names = [each["name"] for each in found["outcomes"]]
    assert names[0] == "local, site-a"
    assert names[3:] == ["pooled", "federated, plain", "federated, secure"]
    assert found["pairs"][-1]["mcnemar"]["p"] > 0.05
    for option, value, said in (
        ("--modes", "telepathic", "telepathic"),
        ("--set", "training.mixup=-1", "mixup"),
        ("--set", "rounds=9", "no setting 'rounds'"),
        ("--set", "aggregation.sites_per_round=2", "no setting 'aggregation'"),
        ("--epsilon", "lots", "no list of numbers"),
        ("--architecture", "unet", "simulations compare classification"),
        ("--architecture", "cathedral", "architecture"),
        ("--set", "training.batch_size=1000", "that site-a trains on"),
        ("--set", "training.class_weights=[1]", "class_weights"),
    ):
        answer = CliRunner().invoke(create_app(), [*words, option, value])
        assert answer.exit_code == 1, answer.output
        assert said in answer.output


def test_the_share_held_out_is_the_one_asked_for(images: Path, tmp_path: Path) -> None:
    spec = ModelSpec(architecture="small_cnn", classes=listed(images).classes, image_size=16)
    fifth, third = (load(images, spec, Wanted(test=share)) for share in (0.0, 0.35))
    whole = len(listed(images))
    assert len(fifth.test) == pytest.approx(0.2 * whole, abs=3)
    assert len(third.test) == pytest.approx(0.35 * whole, abs=3)
    (tmp_path / "train").symlink_to(images)
    (tmp_path / "test").symlink_to(images)
    with pytest.raises(InvalidInput, match="has the test images"):
        load(tmp_path, spec, Wanted(test=0.2))


def stopping(**rule: object) -> TrainingSettings:
    """No site gains an accuracy of 1: each stops in its second round, or one check later."""
    given = {"measure": "accuracy", "patience": 1, "min_change": 1.0, **rule}
    return TrainingSettings.model_validate({**PLAN.training.model_dump(), "local_stopping": given})


@pytest.mark.parametrize("secure", [True, False])
def test_rounds_end_when_early_stopping_has_stopped_the_sites(
    setting: Setting, secure: bool
) -> None:
    done: list[int] = []
    plan = Plan(9, stopping())
    sites = setting.sites[:2]
    short = train(sites, setting.spec, plan, secure=secure, progress=lambda n, _: done.append(n))
    assert 1 <= len(done) < 9
    assert np.isfinite(short).all()


def test_a_stopped_site_stays_in_the_mean_only_where_it_is_to_contribute(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    willing = Plan(3, stopping(when_stopped="contribute"))
    leaving = Plan(3, stopping(when_stopped="leave"))
    stopped = {setting.sites[0].name: Carried(standing=Standing(None, 9, True))}
    names = [
        [s.name for s in modes._willing(setting.sites, p, stopped)] for p in (willing, leaving)
    ]
    assert names == [["site-a", "site-b", "site-c"], ["site-b", "site-c"]]
    everyone = dict.fromkeys(names[0], stopped["site-a"])
    assert modes._willing(setting.sites, willing, everyone) == []
    with pytest.raises(InvalidInput, match="uncover"):
        train(setting.sites, setting.spec, willing, secure=True)
