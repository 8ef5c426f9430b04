"""Reading image files of any kind as 8-bit grey squares."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medvill_pl.data.dicom import display_pixels, frame_size, is_dicom, open_dicom
from medvill_pl.data.margins import cut_margins

MIN_SIDE = 16
"""An image with a shorter side, in pixels, is no radiograph."""
MAX_PIXELS = 120_000_000
"""An image that claims more pixels is refused by its header, before it is decoded."""


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Read an image file as grey pixels.

    Eight-bit images keep their values (colour is turned into luminance). Images with more bits are
    stretched from their darkest to their brightest pixel, since 10- to 16-bit values come in
    16-bit files. DICOM files (known by their content, whatever their name) look as in a viewer,
    see :func:`medvill_pl.data.dicom.display_pixels`.

    Args:
        path: a PNG, JPEG, DICOM or any other file that Pillow reads.

    Returns:
        Grey pixels 0..255, uint8, shape ``(H, W)``.

    Raises:
        ValueError: if the file is no image, broken, too small or too large.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "radiograph.png"
        ...     Image.fromarray(np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)).save(path)  # 12 bits
        ...     pixels = read_grey(path)
        >>> pixels.shape, pixels.dtype, int(pixels.min()), int(pixels.max())
        ((20, 20), dtype('uint8'), 0, 255)
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if is_dicom(path):
            dataset = open_dicom(path)
            _check_size(*frame_size(dataset))
            return display_pixels(dataset)
        with Image.open(path) as file:
            _check_size(*file.size)
            try:
                file.load()
            except ValueError as error:  # what Pillow before 13 says of some TIFF files that were cut
                raise OSError(error) from error
            ImageOps.exif_transpose(file, in_place=True)
            if file.mode.startswith(("I", "F")):
                return _stretch(np.asarray(file, dtype=np.float64))
            return np.asarray(file if file.mode == "L" else file.convert("L"))  # a copy costs as much as resizing
    except ValueError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise  # of the disk; what Pillow finds wrong with an image has no number
        raise ValueError(f"not a readable image: {error}") from error
    except Exception as error:  # each format has its own errors for broken bytes
        raise ValueError(f"not a readable image: {error}") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width} x {height} pixels are too few (at least {MIN_SIDE} per side)")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many (at most {MAX_PIXELS:,})")


def _stretch(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("not a readable image: it has pixels that are no numbers")
    return np.round((pixels - low) * (255 / ((high - low) or 1))).astype(np.uint8)


def fit_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image to a square, keeping the aspect ratio; the rest is black.

    Args:
        pixels: grey pixels, uint8, shape ``(H, W)``.
        size: side of the square in pixels.

    Returns:
        uint8, shape ``(size, size)``.

    Example:
        >>> fit_square(np.full((10, 20), 255, np.uint8), 4)
        array([[  0,   0,   0,   0],
               [255, 255, 255, 255],
               [255, 255, 255, 255],
               [  0,   0,   0,   0]], dtype=uint8)
    """
    height, width = pixels.shape
    scale = size / max(height, width)
    new = max(1, round(width * scale)), max(1, round(height * scale))
    # reducing_gap: first reduced by a whole number to 3 times the size, which is several times faster and looks alike.
    resized = Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR, reducing_gap=3.0)
    square = Image.new("L", (size, size))
    square.paste(resized, ((size - new[0]) // 2, (size - new[1]) // 2))
    return np.asarray(square)


def read_square(path: Path, size: int, without_margins: bool) -> NDArray[np.uint8]:
    """Read an image file as the square that a corpus holds.

    Args:
        path: what :func:`read_grey` takes.
        size: side of the square in pixels.
        without_margins: cut the margins off first (see :func:`medvill_pl.data.margins.cut_margins`).

    Returns:
        Grey pixels 0..255, uint8, shape ``(size, size)``.

    Raises:
        ValueError: if the file is no image, broken, too small or too large.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> framed = np.pad(np.random.default_rng(0).integers(60, 200, (40, 40), np.uint8), 12)  # a black border
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "radiograph.png"
        ...     Image.fromarray(framed).save(path)
        ...     square = read_square(path, 32, without_margins=True)
        >>> square.shape, bool(square.min() > 0)
        ((32, 32), True)
    """
    pixels = read_grey(path)
    return fit_square(cut_margins(pixels) if without_margins else pixels, size)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels as PNG, without loss.

    Args:
        pixels: uint8, shape ``(H, W)``.

    Example:
        >>> encode_png(np.zeros((16, 16), np.uint8))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
