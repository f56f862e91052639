"""What a session may hold is known before it is opened."""

import pytest

from primia.errors import InvalidInput
from primia.mpc.securenn.layout import check_memory, memory_bytes, steps
from tests.support.inference import resnet18


def test_memory_grows_with_the_widest_step_of_the_batch():
    plan = resnet18(224)
    one, four = memory_bytes(plan, 1), memory_bytes(plan, 4)
    widest = max(step.count for step in steps(plan, 1))
    assert widest == 64 * 112 * 56  # rows of the pooling: a pair of each window
    assert one == 400_000_000 + 600 * widest
    assert four - one == 3 * 600 * widest


def test_a_session_over_the_limit_is_refused_with_what_to_do():
    plan = resnet18(224)
    check_memory(plan, 1, 1 << 30)
    with pytest.raises(InvalidInput, match=r"4\.\d GB for a batch of 16; 1\.1 are allowed"):
        check_memory(plan, 16, 1 << 30)
