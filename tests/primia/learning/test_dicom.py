import io
import os
from pathlib import Path

import gdcm
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from primia.learning import dicom
from primia.learning.datasets import inspect, scan_csv, scan_folder
from primia.learning.images import ImageRejected, decode

RED = np.full((32, 32, 3), (200, 0, 40), np.uint8)
AS_YBR = np.full((32, 32, 3), (64, 114, 225), np.uint8)  # PS3.3 C.7.6.3.1.2
RAMP = (np.arange(32 * 32).reshape(32, 32) * 4).astype(np.uint16)  # 0 … 4092: 12 bits


def radiograph(pixels: np.ndarray = RAMP, bits: int = 12, **more: object) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    found = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    found.PatientID, found.PatientName = "4711", "Doe^Jane"
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    found.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated = 8 * pixels.itemsize
    found.BitsStored, found.HighBit, found.PixelRepresentation = bits, bits - 1, 0
    found.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(found, name, value)
    return found


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def seen(dataset: Dataset, channels: int = 1) -> np.ndarray:
    return decode(written(dataset), 32, channels, "image.dcm")


def test_without_a_window_the_image_fills_the_range_in_full_depth() -> None:
    expected = np.rint(RAMP / 4092 * 255)
    assert np.array_equal(seen(radiograph())[0], expected)
    assert seen(radiograph(), channels=3).shape == (3, 32, 32)


def test_a_window_is_applied_as_the_standard_says() -> None:
    """PS3.3 C.11.2.1.2.1: centre 2048, width 2049."""
    found = seen(radiograph(WindowCenter=["2048", "9"], WindowWidth=["2049", "9"]))[0]
    expected = np.clip((RAMP - 2047.5) / 2048 + 0.5, 0, 1) * 255
    assert np.abs(found - expected).max() <= 0.501
    exact = seen(radiograph(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"))[0]
    assert np.abs(exact - np.clip((RAMP - 2048.0) / 1000 + 0.5, 0, 1) * 255).max() <= 0.501
    soft = seen(radiograph(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID"))[0]
    assert np.abs(soft - 255 / (1 + np.exp(-4 * (RAMP - 2048.0) / 1000))).max() <= 0.501


def test_values_are_rescaled_before_the_window() -> None:
    found = seen(
        radiograph(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=2001)
    )[0]
    expected = np.clip((RAMP * 2.0 - 1000 - 2999.5) / 2000 + 0.5, 0, 1) * 255
    assert np.abs(found - expected).max() <= 0.501


def test_a_lookup_table_is_applied() -> None:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = ((255 - np.arange(4096) // 16) * 257).astype(np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    found = seen(radiograph(VOILUTSequence=[item]))[0]
    assert np.array_equal(found, 255 - RAMP // 16)


def test_where_low_is_white_the_image_is_inverted() -> None:
    plain = seen(radiograph())[0].astype(int)
    inverted = seen(radiograph(PhotometricInterpretation="MONOCHROME1"))[0].astype(int)
    assert np.abs(plain + inverted - 255).max() <= 1


def test_compressed_images() -> None:
    plain = seen(radiograph())
    for syntax in (RLELossless, JPEG2000Lossless):
        found = radiograph()
        if syntax == RLELossless:
            found.compress(syntax)
        else:
            buffer = io.BytesIO()
            Image.fromarray(RAMP).save(buffer, "JPEG2000", no_jp2=True)
            found.PixelData = encapsulate([buffer.getvalue()])
            found.file_meta.TransferSyntaxUID = syntax
        assert np.array_equal(seen(found), plain)
    eight = (RAMP >> 4).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(eight).save(buffer, "JPEG", quality=95)
    lossy = radiograph(eight, bits=8)
    lossy.PixelData = encapsulate([buffer.getvalue()])
    lossy.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert np.abs(seen(lossy)[0].astype(int) - plain[0]).max() <= 8


def by_gdcm(dataset: Dataset, syntax: int, folder: Path) -> bytes:
    """The file as GDCM compresses it."""
    plain, target = folder / "plain.dcm", folder / "compressed.dcm"
    plain.write_bytes(written(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()


@pytest.mark.parametrize(
    ("syntax", "uid", "off"),
    [
        (gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEGLosslessSV1, 0),
        (gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless, 0),
        (gdcm.TransferSyntax.JPEGLSNearLossless, JPEGLSNearLossless, 1),
    ],
    ids=["lossless JPEG", "JPEG-LS", "JPEG-LS, nearly lossless"],
)
def test_what_pacs_compress_with(syntax: int, uid: UID, off: int, tmp_path: Path) -> None:
    """Grey in 12 bits and, where it has to be the same to the last bit, colour."""
    data = by_gdcm(radiograph(), syntax, tmp_path)
    assert uid.encode() in data[:1024]
    found = decode(data, 32, 1, "image.dcm").astype(int)
    assert np.abs(found - seen(radiograph())).max() <= off
    if not off:
        data = by_gdcm(radiograph(RED, bits=8), syntax, tmp_path)
        assert decode(data, 32, 3, "image.dcm")[:, 5, 5].tolist() == RED[5, 5].tolist()


def test_colour_images() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 200, 40
    found = radiograph(pixels, bits=8)
    assert seen(found, channels=3)[:, 0, 0].tolist() == [200, 0, 40]
    assert seen(found, channels=1)[0, 0, 0] == round(0.299 * 200 + 0.114 * 40)


def encoded(kind: str, syntax: UID, format_: str, **options: object) -> Dataset:
    """RED as another program's encoder writes it, in a file that says ``kind``."""
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, format_, **options)
    found = radiograph(RED, bits=8, PhotometricInterpretation=kind)
    found.PixelData = encapsulate([buffer.getvalue()])
    found.file_meta.TransferSyntaxUID = syntax
    return found


def ybr(**more: object) -> Dataset:
    return radiograph(AS_YBR, bits=8, **{"PhotometricInterpretation": "YBR_FULL", **more})


def ybr_of_two() -> Dataset:
    """Two pixels share Cb and Cr: Y Y Cb Cr."""
    pairs = np.broadcast_to(np.array([64, 64, 114, 225], np.uint8), (32, 16, 4))
    return ybr(PhotometricInterpretation="YBR_FULL_422", PixelData=pairs.tobytes())


def ybr_in_runs() -> Dataset:
    found = ybr()
    found.compress(RLELossless)
    return found


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(ybr(), id="YBR_FULL"),
        pytest.param(ybr(PlanarConfiguration=1, PixelData=AS_YBR.transpose(2, 0, 1).tobytes()),
                     id="by plane"),
        pytest.param(ybr_of_two(), id="YBR_FULL_422"),
        pytest.param(ybr_in_runs(), id="RLE"),
        pytest.param(encoded("YBR_FULL_422", JPEGBaseline8Bit, "JPEG", quality=95), id="JPEG"),
        pytest.param(encoded("RGB", JPEGBaseline8Bit, "JPEG", keep_rgb=True, quality=95),
                     id="JPEG of RGB"),
        pytest.param(encoded("RGB", JPEGBaseline8Bit, "JPEG", quality=95),
                     id="JPEG that is not the RGB it says"),
        pytest.param(encoded("YBR_RCT", JPEG2000Lossless, "JPEG2000", no_jp2=True), id="YBR_RCT"),
        pytest.param(encoded("YBR_ICT", JPEG2000, "JPEG2000", no_jp2=True, irreversible=True),
                     id="YBR_ICT"),
        pytest.param(radiograph(RED.astype(np.uint16) * 257, bits=16), id="RGB of 16 bits"),
    ],
)  # fmt: skip
def test_colour_is_the_same_however_it_is_stored(dataset: Dataset) -> None:
    found = seen(dataset, channels=3)[:, 5, 5].astype(int)
    assert np.abs(found - RED[5, 5]).max() <= 1


PADDED = np.where(np.arange(32) < 8, 63536, RAMP).astype(np.uint16)  # a band of -2000 at the left
PADDING = {"PixelRepresentation": 1, "PixelPaddingValue": -2000}


def test_padding_is_black_and_takes_no_part_in_the_range() -> None:
    found = seen(radiograph(PADDED, bits=16, **PADDING))[0]
    image = RAMP[:, 8:].astype(float)
    low, high = image.min(), image.max()
    assert not found[:, :8].any()
    assert np.array_equal(found[:, 8:], np.rint((image - low) / (high - low) * 255))
    inverted = seen(radiograph(PADDED, 16, PhotometricInterpretation="MONOCHROME1", **PADDING))[0]
    assert not inverted[:, :8].any()
    assert np.array_equal(inverted[:, 8:], 255 - found[:, 8:])


def test_padding_may_be_a_range_and_written_as_a_number_without_sign() -> None:
    plain = seen(radiograph(PADDED, bits=16, **PADDING))
    ranged = np.where(np.arange(32) < 4, 63000, PADDED).astype(np.uint16)
    limit = {**PADDING, "PixelPaddingRangeLimit": -3000}
    assert np.array_equal(seen(radiograph(ranged, bits=16, **limit)), plain)
    odd = radiograph(PADDED, bits=16, PixelRepresentation=1)
    odd.add_new("PixelPaddingValue", "US", 63536)
    assert np.array_equal(seen(odd), plain)


def test_padding_is_black_beside_a_window_too() -> None:
    window = {"WindowCenter": 0, "WindowWidth": 8001}
    found = seen(radiograph(PADDED, bits=16, **PADDING, **window))[0]
    expected = np.clip((RAMP[:, 8:] + 0.5) / 8000 + 0.5, 0, 1) * 255
    assert not found[:, :8].any()
    assert np.abs(found[:, 8:] - expected).max() <= 0.501


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 2, "PixelData": RAMP.tobytes() * 2}, "several frames"),
        ({"Rows": 60000, "Columns": 60000}, "pixels"),
        ({"Rows": 4}, "too small"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "kind we do not read"),
        ({"PixelData": b"\0" * 10}, "damaged"),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 5000}, "padding alone"),
    ],
)
def test_what_is_no_single_radiograph_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageRejected, match=reason):
        seen(radiograph(**change))


def test_colour_that_no_decoder_leads_to_rgb_is_refused() -> None:
    for kind in ("YBR_PARTIAL_422", "YBR_RCT"):  # the second one is of JPEG 2000 alone
        with pytest.raises(ImageRejected, match=f"kind we do not read \\({kind}"):
            seen(ybr(PhotometricInterpretation=kind))


def test_files_that_are_damaged_or_hold_no_image_are_refused() -> None:
    report = radiograph()
    del report.PixelData
    with pytest.raises(ImageRejected, match="without an image"):
        seen(report)
    data = written(radiograph())
    for cut in (132, 200, 700):
        with pytest.raises(ImageRejected):
            decode(data[:cut], 32, 1, "image.dcm")
    deflated = radiograph()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(ImageRejected, match="deflated"):
        seen(deflated)


def test_the_patient_is_a_digest_that_keeps_a_patients_images_together() -> None:
    first, again = dicom.patient(written(radiograph())), dicom.patient(written(radiograph(bits=11)))
    other = dicom.patient(written(radiograph(PatientID="4712")))
    assert first == again != other
    assert first is not None
    assert "4711" not in first
    assert dicom.patient(written(radiograph(PatientID="", PatientName=""))) is None


def test_a_folder_of_dicom_files_is_a_data_set_without_names(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / ("normal" if number % 2 else "pneumonia")
        folder.mkdir(exist_ok=True)
        pixels = RAMP + number
        data = written(radiograph(pixels, PatientID=f"P{number // 3}"))
        (folder / f"{number}.dcm").write_bytes(data)
    found = inspect(scan_folder(tmp_path))
    assert found.problems == ()
    assert found.manifest is not None
    assert found.manifest.patients == 2
    text = found.manifest.to_json()
    assert "Doe" not in text
    assert '"P0"' not in text
    # a user's own word goes before the header
    rows = [f"{e.path},{e.label},Q{k}" for k, e in enumerate(found.manifest.entries)]
    (tmp_path / "list.csv").write_text("path,label,patient\n" + "\n".join(rows))
    stated = inspect(scan_csv(tmp_path / "list.csv")).manifest
    assert stated is not None
    assert stated.patients == 6


def test_dicom_files_are_known_by_their_first_bytes_whatever_their_names(tmp_path: Path) -> None:
    """As a PACS exports them; its table of contents is no image."""
    for number, name in enumerate(["IM0001", "IM0002", "1.2.840.10008.4", "1.2.840.10008.5"]):
        folder = tmp_path / ("normal" if number % 2 else "pneumonia")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(written(radiograph(RAMP + number, PatientID=f"P{number}")))
        (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "normal" / "README").write_text("what this is")
    os.mkfifo(tmp_path / "normal" / "pipe")  # would block a reader for ever
    found = inspect(scan_folder(tmp_path))
    assert found.manifest is not None
    assert found.manifest.counts == {"normal": 2, "pneumonia": 2}
    assert [(each.path, each.severity) for each in found.problems] == [
        ("normal/README", "note"),
        ("normal/pipe", "note"),
    ]


def test_a_header_that_makes_no_sense_is_damage() -> None:
    data = bytearray(written(radiograph()))
    at = data.index(b"UL") + 4  # the length of the first element, four bytes a value
    data[at - 2 : at] = (710).to_bytes(2, "little")
    with pytest.raises(ImageRejected, match="damaged"):
        decode(bytes(data), 32, 1, "image.dcm")
    for read in (dicom.patient, dicom.size):
        with pytest.raises(dicom.Damaged):
            read(bytes(data))


def test_a_window_that_is_no_number_is_refused() -> None:
    odd = radiograph(WindowCenter="1e400", WindowWidth="100")
    with pytest.raises(ImageRejected, match="no number"):
        seen(odd)
