import errno
import hashlib
import threading

import pytest

from primia.mpc.sinks import HashedSink, pipeline


class Memory:
    def __init__(self):
        self.pieces = []

    def write(self, data):
        self.pieces.append(bytes(data))


class Full:
    """Takes its first piece, as a disk that fills up later."""

    def __init__(self):
        self.taken = 0

    def write(self, data):
        self.taken += 1
        if self.taken > 1:
            raise OSError(errno.ENOSPC, "no space")


def write(target, pieces):
    with pipeline() as through:
        sink = HashedSink(target, b"header", through)
        for _ in range(pieces):
            sink.write(b"piece")
        through.finish()


def test_pieces_arrive_in_order_counted_and_hashed():
    memory = Memory()
    pieces = [bytes([number]) * (1000 + number) for number in range(50)]
    with pipeline() as through:
        sink = HashedSink(memory, b"header", through)
        for piece in pieces:
            sink.write(piece)
        through.finish()
    assert memory.pieces == [b"header", *pieces]
    whole = b"".join(memory.pieces)
    assert sink.size == len(whole)
    assert sink.digest() == hashlib.sha256(whole).hexdigest()


def test_a_full_disk_ends_the_deal_and_not_only_its_thread():
    before = threading.active_count()
    with pytest.raises(OSError, match="no space"):
        write(Full(), 100)
    assert threading.active_count() == before


def test_a_failure_in_the_last_piece_is_not_lost():
    with pytest.raises(OSError, match="no space"):
        write(Full(), 1)


def test_the_dealer_is_ahead_by_a_few_pieces_only():
    gate, started = threading.Event(), threading.Semaphore(0)

    class Slow:
        def write(self, data):
            gate.wait(10)

    with pipeline() as through:

        def deal():
            sink = HashedSink(Slow(), b"header", through)
            for _ in range(20):
                started.release()
                sink.write(b"piece")

        dealing = threading.Thread(target=deal)
        dealing.start()
        passed = 0
        while started.acquire(timeout=0.2):
            passed += 1
        assert passed <= 5
        gate.set()
        dealing.join()
        through.finish()
