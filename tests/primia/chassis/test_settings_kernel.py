"""A kernel that the machine cannot run is refused at the start, not in the first inference."""

import pytest

from primia.chassis.settings import ServiceSettings
from primia.errors import UnsafeSettings
from primia.fss import kernels, native


def settings(monkeypatch, tmp_path, kernel):
    monkeypatch.setenv("PRIMIA_NAME", "owner")
    monkeypatch.setenv("PRIMIA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BROKER_URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("PRIMIA_KERNEL", kernel)
    return ServiceSettings.from_environment()


def test_native_is_refused_where_the_processor_cannot(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "vector_words", lambda: 0)
    assert settings(monkeypatch, tmp_path, "auto").kernel == "auto"
    with pytest.raises(UnsafeSettings, match="AES-NI"):
        settings(monkeypatch, tmp_path, "native")


def test_an_unknown_kernel_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UnsafeSettings, match="PRIMIA_KERNEL"):
        settings(monkeypatch, tmp_path, "fastest")


def test_auto_says_what_it_took_and_why(monkeypatch):
    monkeypatch.setattr(kernels, "vector_words", lambda: 2)
    assert kernels.chosen("auto") == "native, 2 words of AES at a time"
    assert kernels.chosen("numpy") == "numpy, as the settings say"
    monkeypatch.setattr(kernels, "vector_words", lambda: 0)
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(kernels, "why_not", native.why_not.__wrapped__)
    assert kernels.chosen("auto").startswith("numpy, ")
    assert kernels.chosen("auto").endswith("for x86-64 alone, and this is aarch64")
