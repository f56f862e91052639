"""Progress beside the protocol: nobody waits for a write, the last one is not lost, errors come."""

from __future__ import annotations

import threading
import time

import pytest

from primia.messages.inference import Cost
from services.data_node.inference.progress import Progress

COST = Cost()
PATIENCE = 5.0


def test_telling_does_not_wait_for_the_write():
    written, let_go = [], threading.Event()

    def write(phase, step, steps, cost):
        let_go.wait(PATIENCE)
        written.append(step)

    with Progress(write, 0) as progress:
        for step in range(20):
            progress.tell("online", step, 20, COST)
        assert written == []
        let_go.set()
    assert written[-1] == 19
    assert len(written) <= 2  # what was out of date was skipped


def test_writes_are_apart_but_for_the_last():
    written = []
    with Progress(lambda *told: written.append(told[:3]), 60) as progress:
        progress.tell("offline", 0, 0, COST)
        deadline = time.monotonic() + PATIENCE
        while not written and time.monotonic() < deadline:
            time.sleep(0.001)
        for step in range(5):
            progress.tell("online", step, 4, COST)
        assert written == [("offline", 0, 0)]
    assert written == [("offline", 0, 0), ("online", 4, 4)]


class Cancelled(Exception):
    pass


def test_what_a_write_raises_comes_to_the_one_who_tells():
    raised = threading.Event()

    def write(*_told):
        raised.set()
        raise Cancelled

    def tells():
        with Progress(write, 0) as progress:
            progress.tell("online", 0, 4, COST)
            assert raised.wait(PATIENCE)
            while True:
                progress.check()
                time.sleep(0.001)

    with pytest.raises(Cancelled):
        tells()


def test_an_attempt_does_not_end_well_if_its_last_progress_could_not_be_written():
    def write(*_told):
        raise Cancelled

    def tells():
        with Progress(write, 0) as progress:
            progress.tell("online", 4, 4, COST)

    with pytest.raises(Cancelled):
        tells()


def test_an_error_of_the_attempt_is_not_hidden():
    def write(*_told):
        raise Cancelled

    def breaks():
        with Progress(write, 0) as progress:
            progress.tell("online", 0, 4, COST)
            raise ValueError

    with pytest.raises(ValueError):
        breaks()
