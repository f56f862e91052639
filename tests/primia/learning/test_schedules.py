import pytest

from primia.learning.config import Schedule
from primia.learning.schedules import LEAST_WARM_UP, Span, rate_factor

HALF = {"linear": 0.505, "cosine": 0.505, "log_linear": 0.1}


@pytest.mark.parametrize("kind", ["linear", "cosine", "log_linear"])
def test_a_descent_begins_at_the_full_rate_and_ends_at_the_final_one(kind: str) -> None:
    schedule = Schedule(kind=kind, final=0.01)  # type: ignore[arg-type]
    assert rate_factor(schedule, 0) == 1
    assert rate_factor(schedule, 0.5) == pytest.approx(HALF[kind])
    assert rate_factor(schedule, 1 - 1e-9) == pytest.approx(0.01, rel=1e-3)
    factors = [rate_factor(schedule, step / 100) for step in range(100)]
    assert factors == sorted(factors, reverse=True)


def test_warm_up_and_restarts() -> None:
    schedule = Schedule(kind="cosine", warm_up=0.2, restarts=3)
    assert rate_factor(schedule, 0) == LEAST_WARM_UP
    assert rate_factor(schedule, 0.1) == pytest.approx(0.5)
    for start in (0.2, 0.4, 0.6, 0.8):
        assert rate_factor(schedule, start + 1e-9) == pytest.approx(1)
        assert rate_factor(schedule, start + 0.2 - 1e-6) == pytest.approx(0.01, rel=1e-2)


def test_a_constant_rate_may_warm_up_too() -> None:
    schedule = Schedule(warm_up=0.5)
    assert [rate_factor(schedule, x) for x in (0.25, 0.5, 0.9)] == [0.5, 1, 1]


def test_rounds_are_parts_of_the_run() -> None:
    assert Span.of_round(0, 4) == Span(0, 0.25)
    assert Span.of_round(3, 4).at(1, 2) == 0.875
    # a site that is asked for more rounds than were planned stays in the last one
    assert Span.of_round(9, 4) == Span(0.75, 1)
