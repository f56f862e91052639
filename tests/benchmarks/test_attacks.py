"""What is attacked in each row of the gradient inversion's table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.bed.attacks import Owner, cases, rounds, spread, unit
from primia.evaluation.attacks.inversion import Search
from primia.learning.synthetic import draw_dataset
from primia.simulation.invertible import invertible
from primia.simulation.sites import Setting, Wanted, listed, load


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("drawn")
    draw_dataset(root / "set", 12, 12, 1, 32)
    spec = invertible(listed(root / "set").classes, 32)
    return load(root / "set", spec, Wanted(sites=3, validation=0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_case_attacks_the_same_images(setting: Setting) -> None:
    wanted = {p.tobytes() for site in setting.sites for p in spread(site.training, 4).pixels}
    assert len(wanted) == 12
    for case in cases(4, [8.0]):
        done = [
            (len(sites), data) for sites in rounds(case, setting, 12) for data in sites.values()
        ]
        assert {sites for sites, _ in done} == {case.sites}
        assert {len(data) for _, data in done} == {case.images}
        shown = [pixels.tobytes() for _, data in done for pixels in data.pixels]
        assert sorted(shown) == sorted(wanted)


def test_an_attack_ends_in_pairs_of_images_and_finds_more_the_longer_it_searches(
    setting: Setting,
) -> None:
    one = next(cases(2, []))
    owner = Owner(setting.spec, setting.test, "grey")
    short, long = (owner.attack(one, setting, 3, Search(steps)) for steps in (1, 50))
    assert torch.equal(short.true, long.true)
    assert long.labels == 1
    assert 0 <= long.found.min() <= long.found.max() <= 1
    assert (long.found - long.true).square().mean() < (short.found - short.true).square().mean() / 2


def test_who_saw_nothing_guesses_by_its_own_images(setting: Setting) -> None:
    owner = Owner(setting.spec, setting.test, "grey")
    assert 1 / 3 < owner.guessed(setting, 12, 4) <= 1
    assert torch.allclose(owner.mean, unit(setting.test).mean(dim=0))
    assert np.isclose(float(owner.chances.sum()), 1, atol=1e-5)
