"""How much of the machine the dealer takes where nobody says."""

import pytest

from services.crypto_provider import settings


def made(tmp_path, **given):
    return settings.CryptoProviderSettings(
        name="dealer", state_dir=tmp_path / "state", BROKER_URL="redis://127.0.0.1:1/0", **given
    )


@pytest.mark.parametrize(
    ("cores", "memory", "threads", "at_once"),
    [
        (1, 64e9, 1, 2),  # never one alone: a long deal would hold up all others
        (2, 64e9, 2, 2),
        (16, 64e9, 16, 16),
        (64, 8e9, 64, 16),  # as many as memory holds
        (500, 1e12, 256, 64),
        (8, 1e8, 8, 2),
    ],
)
def test_a_deal_at_once_for_each_core(monkeypatch, tmp_path, cores, memory, threads, at_once):
    monkeypatch.setattr(settings, "cores", lambda: cores)
    monkeypatch.setattr(settings, "memory_bytes", lambda: int(memory))
    found = made(tmp_path)
    assert (found.threads, found.concurrency) == (threads, at_once)


def test_what_is_said_goes(tmp_path):
    found = made(tmp_path, threads=3, concurrency=5)
    assert (found.threads, found.concurrency) == (3, 5)
