import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from primia.learning import images
from primia.learning.images import ImageRejected, decode, load, normalise

RAMP = np.linspace(0, 255, 48 * 40).astype(np.uint8).reshape(40, 48)


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_grey_pixels_come_out_unchanged_at_their_own_size(form: str) -> None:
    square = RAMP[:, :40]
    assert np.array_equal(decode(_encoded(Image.fromarray(square), form), 40, 1)[0], square)
    three = decode(_encoded(Image.fromarray(square), form), 40, 3)
    assert np.array_equal(three, np.stack([square] * 3))


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_yields_the_asked_shape(mode: str, channels: int, size: int) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    pixels = decode(_encoded(Image.fromarray(RAMP).convert(mode), form), size, channels)
    assert pixels.shape == (channels, size, size)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    assert pixels.min() < 50


def test_grey_stored_as_colour_is_the_same_grey() -> None:
    grey = _encoded(Image.fromarray(RAMP), "PNG")
    colour = _encoded(Image.fromarray(RAMP).convert("RGB"), "PNG")
    assert np.array_equal(decode(grey, 32, 1), decode(colour, 32, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_grey_is_scaled_from_its_own_depth(bits: int, form: str) -> None:
    deep = np.linspace(0, (1 << bits) - 1, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = decode(_encoded(Image.fromarray(deep), form), 32, 1)[0]
    assert np.abs(pixels - deep / ((1 << bits) - 1) * 255).max() <= 0.5 + 1e-4


def test_deep_and_shallow_files_of_one_picture_agree() -> None:
    deep = _encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG")
    shallow = _encoded(Image.fromarray(RAMP), "PNG")
    difference = decode(deep, 24, 3).astype(int) - decode(shallow, 24, 3)
    assert np.abs(difference).max() <= 1


def test_shrinking_averages_over_all_source_pixels() -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(_encoded(Image.fromarray(board), "PNG"), 16, 1)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_the_orientation_that_a_camera_noted_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    turned = _encoded(Image.fromarray(np.rot90(RAMP)), "PNG", exif=exif)
    assert np.array_equal(
        decode(turned, 20, 1), decode(_encoded(Image.fromarray(RAMP), "PNG"), 20, 1)
    )


def test_load_is_decode_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "one.jpeg"
    file.write_bytes(_encoded(Image.fromarray(RAMP), "JPEG"))
    assert np.array_equal(load(file, 32, 1), decode(file.read_bytes(), 32, 1))


def test_normalise() -> None:
    pixels = np.array([0, 51, 255], np.uint8)
    expected = (np.array([0, 0.2, 1]) - 0.5) / 0.25
    found = normalise(pixels, 0.5, 0.25)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)


def _bomb() -> bytes:
    """A header that promises 30,000 x 30,000 pixels, in a hundred bytes."""
    data = bytearray(_encoded(Image.new("1", (16, 16)), "PNG"))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


REJECTED = {
    "text": (b"patient,label\n", "not an image"),
    "empty": (b"", "not an image"),
    "gif": (_encoded(Image.fromarray(RAMP), "GIF"), "not an image in a format"),
    "cut": (_encoded(Image.fromarray(RAMP), "JPEG")[:-200], "damaged or cut short"),
    "cut png": (_encoded(Image.fromarray(RAMP), "PNG")[:120], "damaged or cut short"),
    "tiny": (_encoded(Image.new("L", (15, 400)), "PNG"), "too small"),
    "large": (_encoded(Image.new("1", (8000, 5001)), "PNG"), "more than"),
    "float": (_encoded(Image.new("F", (32, 32)), "TIFF"), "kind we do not read"),
    "negative": (
        _encoded(Image.fromarray(np.full((32, 32), -5, np.int32)), "TIFF"),
        "samples outside",
    ),
    "pages": (
        _encoded(
            Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)]
        ),
        "several images",
    ),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_what_is_refused_is_named_with_a_reason(kind: str) -> None:
    data, reason = REJECTED[kind]
    with pytest.raises(ImageRejected, match=reason) as found:
        decode(data, 32, 1, "scan_7.png")
    assert found.value.detail.startswith("scan_7.png: ")
    assert found.value.status == 422


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageRejected):
        decode(_bomb(), 32, 1)


def test_a_file_over_the_byte_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    file = tmp_path / "big.png"
    file.write_bytes(_encoded(Image.fromarray(RAMP), "PNG"))
    with pytest.raises(ImageRejected, match=r"big\.png: has more than"):
        load(file, 32, 1)
    with pytest.raises(ImageRejected, match="has more than"):
        decode(file.read_bytes(), 32, 1)


def test_a_file_that_is_not_there_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageRejected, match=r"^gone\.png: cannot be read"):
        load(tmp_path / "gone.png", 32, 1)


SOUND = [_encoded(Image.fromarray(RAMP), form) for form in ("PNG", "JPEG", "TIFF", "BMP")] + [
    _encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF", compression="tiff_lzw")
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=6),
    st.integers(0, 4000),
)
@example(SOUND[2], [(0, 1)], 10)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_decoded_or_refused_never_worse(
    data: bytes, flips: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] ^= value
    kept = bytes(damaged[: max(cut, len(damaged) // 2)])
    with suppress(ImageRejected):
        assert decode(kept, 32, 1).shape == (1, 32, 32)
