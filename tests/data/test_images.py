"""Reading, fitting and encoding images."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from medvill_pl.data.images import encode_png, fit_square, read_grey

Grey = NDArray[np.uint8]

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue (ITU-R 601)."""


def noise(*shape: int) -> Grey:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def ramp(height: int = 24, width: int = 40, low: int = 0, high: int = 255) -> Grey:
    """Smooth grey values, which JPEG keeps nearly as they are; no mirror image or turn equals another."""
    across, down = np.linspace(0, 0.75, width), np.linspace(0, 0.25, height)[:, None]
    return np.round(low + (high - low) * (across + down)).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A grey PNG that claims a size and has no pixels at all."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IEND", b"")


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """An EXIF block with one value for each (tag, type, four bytes)."""
    table = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Grey]:
    """Read an image file with the given content; its name says nothing about it."""

    def write_and_read(content: bytes) -> Grey:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        return read_grey(path)

    return write_and_read


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_grey_images_keep_every_value(form: str, read: Callable[[bytes], Grey]) -> None:
    pixels = ramp(low=100, high=120)  # low contrast, not to be stretched
    grey = read(encoded(Image.fromarray(pixels), form))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, pixels)


def test_jpeg_is_read_to_its_loss(read: Callable[[bytes], Grey]) -> None:
    grey = read(encoded(Image.fromarray(ramp()), "JPEG", quality=95))
    np.testing.assert_allclose(grey.astype(int), ramp().astype(int), atol=4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_becomes_luminance_whatever_the_alpha(mode: str, read: Callable[[bytes], Grey]) -> None:
    pixels = noise(24, 40, len(mode))
    grey = read(encoded(Image.fromarray(pixels, mode), "PNG"))
    np.testing.assert_allclose(grey, pixels[..., :3] @ LUMINANCE, atol=1)


def test_palette_is_looked_up(read: Callable[[bytes], Grey]) -> None:
    palette, positions = noise(256, 3), np.arange(16 * 32, dtype=np.uint8).reshape(16, 32)
    image = Image.fromarray(positions, "L")
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    np.testing.assert_allclose(read(encoded(image, "PNG")), palette[positions] @ LUMINANCE, atol=1)


def test_cmyk_jpeg_shows_ink_as_dark(read: Callable[[bytes], Grey]) -> None:
    ink = np.zeros((32, 48, 4), np.uint8)
    ink[:, 16:32, 3] = 255  # key only
    ink[:, 32:, :3] = 255  # cyan, magenta and yellow
    grey = read(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95))
    assert grey[:, :15].min() > 245
    assert grey[:, 17:31].max() < 10
    assert grey[:, 33:].max() < 10


def test_black_and_white_image_gives_0_and_255(read: Callable[[bytes], Grey]) -> None:
    bits = noise(20, 24) > 127
    np.testing.assert_array_equal(read(encoded(Image.fromarray(bits), "PNG")), bits * 255)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, lambda stored: stored),
        (2, np.fliplr),
        (3, lambda stored: np.rot90(stored, 2)),
        (4, np.flipud),
        (6, lambda stored: np.rot90(stored, -1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(
    orientation: int, shown: Callable[[Grey], Grey], dtype: type, read: Callable[[bytes], Grey]
) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    stored = ramp().astype(dtype)  # from 0 to 255, so that stretching leaves the values alone
    np.testing.assert_array_equal(read(encoded(Image.fromarray(stored), "PNG", exif=tag)), shown(stored))


@pytest.mark.parametrize(
    ("form", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4"), ("TIFF", "<f4")]
)
@pytest.mark.parametrize(("low", "high"), [(1000, 5000), (0, 4095), (7, 9)])
def test_deep_images_are_stretched_from_darkest_to_brightest(
    form: str, dtype: str, low: int, high: int, read: Callable[[bytes], Grey]
) -> None:
    pixels = np.random.default_rng(0).integers(low, high, (20, 30), endpoint=True)
    pixels[0, :2] = low, high
    expected = np.round((pixels - low) / (high - low) * 255)
    grey = read(encoded(Image.fromarray(pixels.astype(dtype)), form))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.25), (-3.0, -2.5)])
def test_floating_point_images_are_stretched_too(low: float, high: float, read: Callable[[bytes], Grey]) -> None:
    pixels = np.linspace(low, high, 20 * 30, dtype=np.float32).reshape(20, 30)
    expected = np.linspace(0, 255, 20 * 30).reshape(20, 30)
    np.testing.assert_allclose(read(encoded(Image.fromarray(pixels), "TIFF")), expected, atol=0.51)


def test_deep_image_of_one_value_is_of_one_value(read: Callable[[bytes], Grey]) -> None:
    grey = read(encoded(Image.fromarray(np.full((20, 30), 4000, np.uint16)), "PNG"))
    assert grey.shape == (20, 30)
    assert len(np.unique(grey)) == 1


def test_smallest_size_is_accepted(read: Callable[[bytes], Grey]) -> None:
    assert read(encoded(Image.fromarray(noise(16, 16)), "PNG")).shape == (16, 16)


PNG = encoded(Image.fromarray(noise(40, 30)), "PNG")
JPEG = encoded(Image.fromarray(noise(40, 30)), "JPEG")
TIFF = encoded(Image.fromarray(noise(40, 30)), "TIFF")
ORIENTATION_6 = (0x0112, 3, b"\x06\0\0\0")
WIDTH_AS_TEXT = (0x0100, 2, b"a\0\0\0")
REFUSED = {
    "one pixel": (encoded(Image.fromarray(noise(1, 1)), "PNG"), "1 x 1 pixels are too few"),
    "a strip": (encoded(Image.fromarray(noise(15, 400)), "PNG"), "400 x 15 pixels are too few"),
    "zero bytes": (b"", "not a readable image"),
    "text": (b"No acute cardiopulmonary process.\n" * 50, "not a readable image"),
    "noise": (noise(3000).tobytes(), "not a readable image"),
    "a PNG with broken pixels": (PNG[:200] + b"\xff" * 100 + PNG[300:], "not a readable image"),
    "a PNG without pixels": (png_header(40, 30), "not a readable image"),
    "a JPEG cut in the middle": (JPEG[: len(JPEG) // 2], "not a readable image"),
    "a JPEG with a broken EXIF tag": (
        encoded(Image.fromarray(noise(40, 30)), "JPEG", exif=exif(WIDTH_AS_TEXT, ORIENTATION_6)),
        "not a readable image",
    ),
    # Tag 273 (0x0111) says where the pixels start: type 2 makes it a text.
    "a TIFF with a broken directory": (TIFF.replace(b"\x11\x01\x04\0", b"\x11\x01\x02\0"), "not a readable image"),
    "not a number": (encoded(Image.fromarray(np.full((20, 30), np.nan, np.float32)), "TIFF"), "no numbers"),
    "infinity": (encoded(Image.fromarray(np.diag([np.inf] * 20).astype(np.float32)), "TIFF"), "no numbers"),
}
if "AVIF" in Image.registered_extensions().values():
    avif = encoded(Image.fromarray(noise(40, 30)), "AVIF")
    REFUSED["an AVIF without its main item"] = (avif.replace(b"pitm", b"free"), "not a readable image")


@pytest.mark.parametrize("what", REFUSED)
def test_unusable_files_are_refused_in_one_line(what: str, read: Callable[[bytes], Grey]) -> None:
    content, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 12_000), (16, 7_500_001)])
def test_gigantic_claims_are_refused_by_the_header(width: int, height: int, read: Callable[[bytes], Grey]) -> None:
    # A decoder would complain that the pixels are missing.
    with pytest.raises(ValueError, match=r"pixels\b"):
        read(png_header(width, height))


@pytest.mark.parametrize("name", ["nothing.png", "folder", "a\0b.png"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        read_grey(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9))
def test_a_file_cut_anywhere_never_gives_a_picture(form: str, share: float, read: Callable[[bytes], Grey]) -> None:
    content = encoded(Image.fromarray(noise(40, 30)), form)
    with pytest.raises(ValueError, match="not a readable image"):
        read(content[: int(share * len(content))])


def white_part(square: Grey) -> tuple[slice, slice]:
    """Rows and columns of a square that hold anything else than black."""
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((40, 20), (0, 32), (8, 24)),
        ((20, 40), (8, 24), (0, 32)),
        ((64, 64), (0, 32), (0, 32)),
        ((8, 8), (0, 32), (0, 32)),
        ((300, 100), (0, 32), (10, 21)),  # 10.67 columns: 11 of them, the odd one of the margin to the right
        ((5000, 16), (0, 32), (15, 16)),  # a tenth of a column is still one
    ],
)
def test_fit_square_keeps_the_aspect_ratio_and_pads_with_black(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    square = fit_square(np.full(shape, 255, np.uint8), 32)
    expected = np.zeros((32, 32), np.uint8)
    expected[slice(*rows), slice(*columns)] = 255
    np.testing.assert_array_equal(square, expected)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(16, 300), width=st.integers(16, 300), size=st.sampled_from([16, 33, 64]))
def test_fit_square_centers_an_image_of_any_shape(height: int, width: int, size: int) -> None:
    square = fit_square(np.full((height, width), 200, np.uint8), size)
    rows, columns = white_part(square)
    assert square.shape == (size, size)
    assert (square[rows, columns] == 200).all()
    for part, side in ((rows, height), (columns, width)):
        assert abs((part.stop - part.start) - size * side / max(height, width)) <= 0.5 or part.stop - part.start == 1
        assert 0 <= (size - part.stop) - part.start <= 1


def test_fit_square_keeps_positions_and_values() -> None:
    quarters = np.array([[10, 80], [150, 240]], np.uint8)
    square = fit_square(np.kron(quarters, np.ones((60, 30), np.uint8)), 40)  # 120 x 60 pixels
    np.testing.assert_array_equal(square[5::30, [12, 27]], quarters)


def test_fit_square_averages_where_it_shrinks() -> None:
    checkers = (np.indices((320, 320)).sum(axis=0) % 2 * 255).astype(np.uint8)
    np.testing.assert_allclose(fit_square(checkers, 32), 127.5, atol=2)


def test_fit_square_leaves_an_image_of_that_size_alone() -> None:
    np.testing.assert_array_equal(fit_square(noise(32, 32), 32), noise(32, 32))


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_png_round_trip_keeps_every_pixel(pixels: Grey) -> None:
    with Image.open(io.BytesIO(encode_png(pixels))) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(decoded), pixels)
