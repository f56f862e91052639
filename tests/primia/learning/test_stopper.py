from primia.learning.config import Stopping
from primia.learning.stopper import Standing


def _after(values: list[float], rule: Stopping) -> Standing:
    standing = Standing()
    for value in values:
        standing = standing.after(value, rule)
    return standing


def test_patience_is_counted_from_the_best_check() -> None:
    rule = Stopping(patience=2)
    assert _after([1.0, 0.9, 0.95], rule) == Standing(0.9, 1, stopped=False)
    assert _after([1.0, 0.9, 0.95, 0.8], rule) == Standing(0.8, 0, stopped=False)
    assert _after([1.0, 0.9, 0.95, 0.91], rule).stopped
    assert _after([1.0, 0.9, 0.95, 0.91, 0.1], rule) == Standing(0.9, 2, stopped=True)


def test_small_changes_and_what_is_not_finite_do_not_count() -> None:
    assert _after([1.0, 0.96, 0.93], Stopping(patience=3, min_change=0.1)).waited == 2
    assert _after([float("nan"), float("nan")], Stopping(patience=2)).stopped


def test_accuracy_is_better_when_higher() -> None:
    assert _after([0.5, 0.6], Stopping(measure="accuracy")) == Standing(0.6)
    assert _after([0.5, 0.6, 0.6], Stopping(measure="accuracy")).waited == 1
