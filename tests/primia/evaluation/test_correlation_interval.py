"""The interval of Matthews' correlation against a bootstrap of the same table."""

import numpy as np
import pytest

from primia.evaluation.measuring import correlation_interval
from primia.evaluation.metrics import correlation

TABLES = {
    "three classes": [[134, 1, 3], [17, 68, 34], [22, 2, 48]],
    "two classes": [[40, 10], [5, 45]],
    "a class that is never predicted": [[90, 10, 0], [20, 60, 0], [5, 15, 0]],
    "no better than a guess": [[30, 30], [30, 30]],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_interval_is_that_of_a_bootstrap(name):
    table = np.array(TABLES[name], dtype=np.float64)
    draws = np.random.default_rng(1).multinomial(
        int(table.sum()), (table / table.sum()).ravel(), size=20_000
    )
    values = [correlation(draw.reshape(table.shape).astype(np.float64)) for draw in draws]
    low, high = correlation_interval(table)
    assert low < correlation(table) < high
    np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975]), atol=0.015)


def test_it_narrows_with_the_root_of_the_images():
    table = np.array(TABLES["three classes"], dtype=np.float64)
    narrow, wide = (np.diff(correlation_interval(times * table)) for times in (4, 1))
    np.testing.assert_allclose(2 * narrow, wide, rtol=1e-3)


@pytest.mark.parametrize("table", [[[5, 0], [7, 0]], [[0, 0], [3, 4]]])
def test_where_a_side_has_one_class_there_is_nothing_but_the_value(table):
    assert correlation_interval(np.array(table, dtype=np.float64)) == (0.0, 0.0)


def test_a_perfect_table_stays_within_one():
    low, high = correlation_interval(np.diag([10.0, 20.0, 30.0]))
    assert (low, high) == pytest.approx((1.0, 1.0), abs=1e-4)
