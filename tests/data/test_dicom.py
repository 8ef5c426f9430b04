"""DICOM files: what is read of them, and how their pixels are shown."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from medvill_pl.data.dicom import DicomTags, read_tags
from medvill_pl.data.images import read_grey

Pixels = NDArray[Any]
Write = Callable[..., Path]

CR = "1.2.840.10008.5.1.4.1.1.1"
COMPRESSED = [
    "RLELossless",
    "JPEGLosslessProcess14",
    "JPEGLosslessProcess14_1",
    "JPEG2000Lossless",
    "JPEG2000",
]


def radiograph(bits: int = 8) -> Pixels:
    """A smooth picture that uses all values of so many bits and has no symmetry."""
    down, across = np.mgrid[0:48, 0:64]
    picture = np.sin(across / 9) + 0.5 * np.cos(down / 7 + 1) + across / 64
    picture = (picture - picture.min()) / np.ptp(picture)
    return np.round(picture * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def make_dataset(pixels: Pixels | None, bits: int = 8, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = CR, generate_uid(entropy_srcs=["a radiograph"])
    dataset.file_meta.MediaStorageSOPClassUID = CR
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "CR"
    if pixels is not None:
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        dataset.BitsAllocated = pixels.dtype.itemsize * 8
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a DICOM file; its name does not say what it is."""

    def make(*arguments: Any, **tags: Any) -> Path:
        path = tmp_path / "radiograph.png"
        make_dataset(*arguments, **tags).save_as(path, enforce_file_format=True)
        return path

    return make


def compress(path: Path, syntax: str) -> Path:
    """Write a DICOM file anew in a compressed transfer syntax."""
    reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    compressed = path.with_name("compressed")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(compressed))
    assert writer.Write()
    return compressed


def shares(pixels: Pixels) -> Pixels:
    """The values from darkest to brightest, as 0..255."""
    return np.round((pixels - pixels.min()) / (float(np.ptp(pixels)) or 1) * 255)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_uncompressed_pixels_of_every_depth(bits: int, syntax: str, write: Write) -> None:
    grey = read_grey(write(radiograph(bits), bits, syntax))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, shares(radiograph(bits)))


def test_eight_bits_keep_their_values_whatever_they_are(write: Write) -> None:
    low_contrast = 100 + radiograph() // 16
    np.testing.assert_array_equal(read_grey(write(low_contrast)), low_contrast)
    same = write(low_contrast, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read_grey(same), low_contrast)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_syntaxes_keep_every_value(bits: int, syntax: str, write: Write) -> None:
    grey = read_grey(compress(write(radiograph(bits), bits), syntax))
    # GDCM writes JPEG2000 in its lossless form unless told otherwise
    np.testing.assert_array_equal(grey, shares(radiograph(bits)))


@pytest.mark.parametrize(("syntax", "bits"), [("JPEGBaselineProcess1", 8), ("JPEGExtendedProcess2_4", 12)])
def test_lossy_jpeg_is_read_to_its_loss(syntax: str, bits: int, write: Write) -> None:
    grey = read_grey(compress(write(radiograph(bits), bits), syntax))
    np.testing.assert_allclose(grey.astype(int), shares(radiograph(bits)), atol=3)


def test_signed_pixels_are_stretched(write: Write) -> None:
    pixels = radiograph(12).astype(np.int16) - 1000
    np.testing.assert_array_equal(read_grey(write(pixels, 16)), shares(pixels))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 100, "WindowWidth": 150}], ids=["bare", "window"])
def test_monochrome1_is_the_inverse_of_monochrome2(bits: int, tags: dict[str, Any], write: Write) -> None:
    plain = read_grey(write(radiograph(bits), bits, **tags)).astype(int)
    inverse = read_grey(write(radiograph(bits), bits, PhotometricInterpretation="MONOCHROME1", **tags)).astype(int)
    np.testing.assert_array_equal(plain + inverse, 255)


def through_window(function: str, values: Pixels, center: float, width: float) -> Pixels:
    """The formulas of DICOM PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, pixel by pixel."""

    def show(x: float) -> float:
        if function == "SIGMOID":
            return float(255 / (1 + np.exp(min(700, -4 * (x - center) / width))))
        shift, span = (0.5, width - 1) if function == "LINEAR" else (0.0, width)
        if x <= center - shift - span / 2:
            return 0.0
        if x > center - shift + span / 2:
            return 255.0
        return ((x - (center - shift)) / span + 0.5) * 255

    return np.vectorize(show)(values.astype(float))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1500.5, 700), (3000, 2)])
def test_windows_by_the_formulas_of_the_standard(function: str, center: float, width: float, write: Write) -> None:
    path = write(radiograph(12), 12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_allclose(read_grey(path), through_window(function, radiograph(12), center, width), atol=0.51)


def test_the_first_of_several_windows_counts(write: Write) -> None:
    first = read_grey(write(radiograph(12), 12, WindowCenter=1000, WindowWidth=500))
    both = read_grey(write(radiograph(12), 12, WindowCenter=[1000, 3000], WindowWidth=[500, 100]))
    np.testing.assert_array_equal(both, first)


def test_rescale_comes_before_the_window(write: Write) -> None:
    path = write(radiograph(12), 12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=3000)
    expected = through_window("LINEAR", radiograph(12) * 2.0 - 1024, 1000, 3000)
    np.testing.assert_allclose(read_grey(path), expected, atol=0.51)


def test_negative_slope_turns_the_picture_over(write: Write) -> None:
    plain = read_grey(write(radiograph(12), 12)).astype(int)
    turned = read_grey(write(radiograph(12), 12, RescaleSlope=-1, RescaleIntercept=0)).astype(int)
    np.testing.assert_allclose(plain + turned, 255, atol=1)


@pytest.mark.parametrize(("center", "width"), [("", ""), (100, 0), (100, 1), (100, -5), (100, None)])
def test_window_that_makes_no_sense_is_none(center: Any, width: Any, write: Write) -> None:
    path = write(radiograph(12), 12, WindowCenter=center, WindowWidth=width)
    np.testing.assert_array_equal(read_grey(path), shares(radiograph(12)))


def lut(values: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = values
    item["LUTData"].VR = "US"
    return item


@pytest.mark.parametrize("bits", [12, 16])
def test_voi_lut_is_looked_up_and_beats_the_window(bits: int, write: Write) -> None:
    table = [round(4095 * (position / 255) ** 2) for position in range(256)]  # 12 bits, whatever is declared
    tags = {"VOILUTSequence": [lut(table, 0, bits)], "WindowCenter": 10, "WindowWidth": 5}
    expected = np.array(table)[radiograph()] / 4095 * 255
    np.testing.assert_allclose(read_grey(write(radiograph(), **tags)), expected, atol=0.51)


def test_voi_lut_keeps_its_ends_for_values_outside(write: Write) -> None:
    path = write(radiograph(), VOILUTSequence=[lut([0, 100, 200, 255], 100, 8)])
    expected = np.interp(radiograph(), [100, 101, 102, 103], [0, 100, 200, 255])
    np.testing.assert_array_equal(read_grey(path), expected)


def test_modality_lut_comes_first(write: Write) -> None:
    table = [4095 - 16 * position for position in range(256)]
    expected = through_window("LINEAR", np.array(table)[radiograph()], 2000, 3000)
    path = write(radiograph(), ModalityLUTSequence=[lut(table, 0, 16)], WindowCenter=2000, WindowWidth=3000)
    np.testing.assert_allclose(read_grey(path), expected, atol=0.51)


def test_padding_does_not_take_part_in_the_stretch(write: Write) -> None:
    pixels = radiograph(12) // 2 + 1000
    pixels[:, :8] = 0
    grey = read_grey(write(pixels, 12, PixelPaddingValue=0))
    np.testing.assert_array_equal(grey[:, 8:], shares(pixels[:, 8:]))
    assert (grey[:, :8] == 0).all()


def test_color_becomes_luminance(write: Write) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    path = write(pixels, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    np.testing.assert_allclose(read_grey(path), pixels @ np.array([0.299, 0.587, 0.114]), atol=0.51)


def code(meaning: str) -> Dataset:
    item = Dataset()
    item.CodeMeaning = meaning
    return item


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "PA "}, "PA"),
        ({"ViewPosition": "LL"}, "LATERAL"),
        ({"ViewPosition": "RL"}, "LATERAL"),
        ({"ViewPosition": "LATERAL"}, "LATERAL"),
        ({"ViewPosition": "LLO"}, "LLO"),
        ({"ViewCodeSequence": [code("postero-anterior")]}, "PA"),
        ({"ViewPosition": "", "ViewCodeSequence": [code("left lateral")]}, "LATERAL"),
        ({}, ""),
    ],
)
def test_view_is_read_from_the_tags(tags: dict[str, Any], view: str, write: Write) -> None:
    assert read_tags(write(radiograph(), **tags)).view == view


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ({}, ""),
        ({"BodyPartExamined": "CHEST"}, ""),
        ({"BodyPartExamined": "PORT CHEST", "Modality": "DX"}, ""),
        ({"BodyPartExamined": "THORAX"}, ""),
        ({"BodyPartExamined": "LEG"}, "BodyPartExamined LEG"),
        ({"BodyPartExamined": "CHEST", "Modality": "CT"}, "Modality CT"),
    ],
)
def test_what_is_no_chest_image_says_so_in_its_tags(tags: dict[str, Any], fault: str, write: Write) -> None:
    result = read_tags(write(radiograph(), **tags)).fault
    assert fault in result if fault else not result


def test_file_without_an_image_is_reported(write: Write) -> None:
    path = write(None, Modality="SR")
    assert read_tags(path) == DicomTags("SR", "", "", False)
    with pytest.raises(ValueError, match=r"holds no image \(Modality SR\)"):
        read_grey(path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 12}, "12 images"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR, not grey"),
        ({"Rows": 480}, "less than expected"),
        ({"Rows": 8}, "64 x 8 pixels are too few"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels are too many"),
        ({"VOILUTFunction": "OWN", "WindowCenter": 1, "WindowWidth": 5}, "OWN"),
    ],
)
def test_unusable_images_are_refused_in_one_line(tags: dict[str, Any], message: str, write: Write) -> None:
    path = write(radiograph(), **tags)
    with pytest.raises(ValueError, match=message) as caught:
        read_grey(path)
    assert "\n" not in str(caught.value)


def test_deflated_file_is_refused_before_it_swells(write: Write) -> None:
    with pytest.raises(ValueError, match="Deflated Explicit VR Little Endian is not read"):
        read_grey(write(radiograph(), 8, DeflatedExplicitVRLittleEndian))


def test_jpeg_ls_is_refused_before_it_is_decoded(write: Write) -> None:
    with pytest.raises(ValueError, match="JPEG-LS Lossless Image Compression is not read"):
        read_grey(compress(write(radiograph()), "JPEGLSLossless"))


def test_gigantic_claim_is_refused_before_the_pixels_are_read(write: Write) -> None:
    path = compress(write(radiograph()), "JPEG2000Lossless")
    content = path.read_bytes()
    for tag in (b"\x28\0\x10\0US\x02\0", b"\x28\0\x11\0US\x02\0"):  # Rows, Columns
        start = content.index(tag) + len(tag)
        content = content[:start] + b"\xff\xff" + content[start + 2 :]
    path.write_bytes(content[:-300] + bytes(292) + content[-8:])  # a decoder would complain of the broken bytes
    with pytest.raises(ValueError, match="65535 x 65535 pixels are too many"):
        read_grey(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    syntax=st.sampled_from(["", "RLELossless", "JPEGLosslessProcess14_1", "JPEGBaselineProcess1", "JPEG2000"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_bytes_give_one_line_and_never_a_crash(
    syntax: str, changes: list[tuple[float, int]], kept: float, write: Write
) -> None:
    path = write(radiograph())
    path = compress(path, syntax) if syntax else path
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[132 + int(position * (len(content) - 132))] = value
    path.write_bytes(content[: 132 + int(kept * (len(content) - 132))])
    with contextlib.suppress(ValueError):  # anything else fails the test
        assert read_grey(path).dtype == np.uint8


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "dicom"
    tags = {path.name: read_tags(path) for path in sorted(folder.glob("*.dcm"))}
    assert tags["RG1_J2KI.dcm"] == DicomTags("CR", "CHEST", "PA", True)
    assert tags["RG3_J2KI.dcm"] == DicomTags("CR", "EXTREMITY", "AP", True)
    assert tags["txv_rsna_MONO2.dcm"] == tags["txv_Fake_MONOHR1.dcm"] == DicomTags("CR", "CHEST", "PA", True)
    assert tags["vlut_04.dcm"] == DicomTags("OT", "", "", True)
    assert [name for name, tag in tags.items() if tag.fault] == ["RG3_J2KI.dcm"]
    radiographs = {name: read_grey(folder / name).astype(int) for name in tags}
    assert (radiographs["txv_rsna_MONO2.dcm"] + radiographs["txv_Fake_MONOHR1.dcm"] == 255).all()
    for name in ("RG1_J2KI.dcm", "txv_rsna_MONO2.dcm"):
        height, width = radiographs[name].shape
        spine = radiographs[name][height // 3 : height // 2, int(width * 0.47) : int(width * 0.53)]
        lung = radiographs[name][height // 3 : height // 2, int(width * 0.2) : int(width * 0.3)]
        assert spine.mean() > lung.mean() + 30
    leg = radiographs["RG3_J2KI.dcm"][800]
    assert leg[560] < 50 < 120 < leg[800]  # air beside the leg, and its bone


def test_real_eight_bit_file_shows_what_pillow_shows(shared_data: Path) -> None:
    content = (shared_data / "dicom" / "txv_rsna_MONO2.dcm").read_bytes()
    start = content.index(b"\xff\xd8\xff")
    with Image.open(io.BytesIO(content[start:])) as image:
        expected = np.asarray(image.convert("L")).astype(int)
    grey = read_grey(shared_data / "dicom" / "txv_rsna_MONO2.dcm").astype(int)
    np.testing.assert_allclose(grey, expected, atol=2)
