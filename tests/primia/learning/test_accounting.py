"""ε against Opacus' accountant, and what has no account."""

from __future__ import annotations

import pytest
from opacus.accountants import RDPAccountant

from primia.errors import InvalidInput
from primia.learning.accounting import (
    BatchTooLarge,
    BudgetTooSmall,
    DpSgd,
    Release,
    check_norm,
    epsilon,
    multiplier_for,
    release_of_round,
    without_account,
)
from primia.learning.config import TrainingConfig
from primia.learning.spec import ModelSpec

DELTA = 1e-5


@pytest.mark.parametrize(
    "releases",
    [
        [Release(1.0, 0.01, 1000)],
        [Release(2.0, 0.5, 50)],
        [Release(4.0, 1.0, 100)],
        [Release(1.1, 0.02, 400), Release(3.0, 0.2, 100)],
    ],
    ids=["usual", "half", "all", "two runs"],
)
def test_epsilon_is_that_of_opacus_or_a_little_more(releases: list[Release]) -> None:
    accountant = RDPAccountant()
    accountant.history = [tuple(release) for release in releases]
    theirs = accountant.get_epsilon(DELTA)
    assert theirs - 1e-9 <= epsilon(releases, DELTA) <= 1.01 * theirs


def test_nothing_costs_nothing_and_everything_adds_up() -> None:
    one = Release(1.5, 0.1, 10)
    assert epsilon([], DELTA) == epsilon([one._replace(steps=0)], DELTA) == 0
    assert epsilon([one, one], DELTA) == pytest.approx(epsilon([one._replace(steps=20)], DELTA))
    assert epsilon([one], DELTA) < epsilon([one, one], DELTA) < 2 * epsilon([one], DELTA)


@pytest.mark.parametrize("target", [0.5, 3.0, 20.0])
def test_a_multiplier_keeps_to_its_target_and_hardly_below(target: float) -> None:
    sigma = multiplier_for(target, DELTA, 0.1, 200)
    assert epsilon([Release(sigma, 0.1, 200)], DELTA) <= target
    assert epsilon([Release(sigma * 0.995, 0.1, 200)], DELTA) > target


def test_a_round_is_what_its_settings_and_the_site_make_of_it() -> None:
    config = TrainingConfig(epochs=2, batch_size=16)
    release = release_of_round(100, config, DpSgd(noise_multiplier=1.2), 5)
    assert release == (1.2, pytest.approx(0.16, abs=2**-32), 14)
    calibrated = release_of_round(100, config, DpSgd(epsilon=3.0), 5)
    assert epsilon([calibrated] * 5, DELTA) == pytest.approx(3.0, rel=0.01)
    batches = TrainingConfig(batches=3, batch_size=100)
    assert release_of_round(100, batches, DpSgd(noise_multiplier=2), 1) == (2, 1.0, 3)


def test_what_cannot_be_is_refused_by_name() -> None:
    config = TrainingConfig(epochs=1, batch_size=64)
    with pytest.raises(BatchTooLarge, match="64 is larger than this site's 63"):
        release_of_round(63, config, DpSgd(noise_multiplier=1), 1)
    with pytest.raises(BudgetTooSmall, match="too small for 100000 steps"):
        release_of_round(64, TrainingConfig(batches=1000, batch_size=64), DpSgd(epsilon=0.001), 100)
    for wrong in ({}, {"noise_multiplier": 1, "epsilon": 1}, {"epsilon": 0}):
        with pytest.raises(InvalidInput):
            DpSgd.parse(wrong)
    assert without_account(TrainingConfig()) == []
    assert without_account(TrainingConfig(mixup=0.2, proximal=0.1)) == ["mixup", "proximal"]
    with pytest.raises(InvalidInput, match="BatchNorm"):
        check_norm(ModelSpec(architecture="small_cnn", classes=("a", "b")))
    check_norm(ModelSpec(architecture="small_cnn", classes=("a", "b"), norm="group"))
    check_norm(ModelSpec(architecture="lenet", classes=("a", "b")))
