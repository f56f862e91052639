"""Files fetched for a user: kept, and taken only whole and right."""

from __future__ import annotations

import hashlib

import pytest

from primia.cli.downloads import cache_folder, download_once
from primia.errors import InvalidInput, PeerUnavailable

DATA = b"weights" * 1000
NAME = f"resnet18-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"
WRONG = "resnet18-00000000.pth"


@pytest.fixture(autouse=True)
def published(site):
    site.files = {f"/models/{name}": DATA for name in (NAME, WRONG)}


def test_a_file_is_fetched_once(site):
    for _ in range(2):
        path = download_once(f"{site.address}/models/{NAME}")
        assert (path.name, path.read_bytes()) == (NAME, DATA)
    assert site.asked == [f"/models/{NAME}"]


@pytest.mark.parametrize(
    ("path", "error", "word"),
    [
        (f"/models/{WRONG}", InvalidInput, "hash"),
        (f"/nowhere/{NAME}", PeerUnavailable, "could not be fetched"),
    ],
)
def test_what_is_wrong_or_missing_leaves_nothing(site, path, error, word):
    with pytest.raises(error, match=word):
        download_once(site.address + path)
    assert list(cache_folder().iterdir()) == []


def test_a_file_over_the_limit_is_not_taken(site, monkeypatch):
    monkeypatch.setattr("primia.cli.downloads.MAX_FILE_BYTES", 100)
    with pytest.raises(InvalidInput, match="more than"):
        download_once(f"{site.address}/models/{NAME}")
    assert list(cache_folder().iterdir()) == []
