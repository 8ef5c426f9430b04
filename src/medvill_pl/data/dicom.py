"""DICOM files: what their tags say, and their pixels as a viewer shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # pydicom is imported by the first DICOM file only
    from pydicom import Dataset

Pixels = NDArray[np.floating[Any]]

_MAGIC_AT = 128
_MAGIC = b"DICM"
_LARGE_ELEMENT = 64 * 1024
"""Larger elements, such as the pixels, stay on the disk until they are asked for."""
_RADIOGRAPHY = ("", "CR", "DX", "RG", "OT")
"""Modalities of radiographs: computed and digital radiography, scanned ones, and what does not say."""
_CHEST_WORDS = ("CHEST", "THORAX", "TORAX", "LUNG")
_VIEWS = {
    "AP": "AP",
    "ANTERO-POSTERIOR": "AP",
    "PA": "PA",
    "POSTERO-ANTERIOR": "PA",
    "LATERAL": "LATERAL",
    "LAT": "LATERAL",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "LEFT LATERAL": "LATERAL",
    "RIGHT LATERAL": "LATERAL",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class DicomTags:
    """What a DICOM file says of itself. Tags are upper case; what is not said is empty.

    Attributes:
        modality: such as CR or DX.
        body_part: such as CHEST.
        view: AP, PA or LATERAL, another view as it is written, or empty.
        has_pixels: False for a report or anything else that holds no image.

    Example:
        >>> DicomTags("CR", "KNEE", "AP", has_pixels=True).fault
        'it does not show the chest (BodyPartExamined KNEE)'
        >>> DicomTags("DX", "", "PA", has_pixels=True).fault
        ''
    """

    modality: str
    body_part: str
    view: str
    has_pixels: bool

    @property
    def fault(self) -> str:
        """Why this is no chest radiograph, by its tags alone; empty where they do not say so."""
        if not self.has_pixels:
            return f"it holds no image (Modality {self.modality or 'not given'})"
        if self.modality not in _RADIOGRAPHY:
            return f"it is no radiograph (Modality {self.modality})"
        if self.body_part and not any(word in self.body_part for word in _CHEST_WORDS):
            return f"it does not show the chest (BodyPartExamined {self.body_part})"
        return ""


@contextmanager
def _faults_in_one_line() -> Iterator[None]:
    """Say what is wrong with a file; what pydicom says may have many lines."""
    try:
        yield
    except OSError:
        raise  # of the disk
    except Exception as error:  # tags that are missing or make no sense raise whatever their use raises
        raise ValueError(f"not a usable DICOM file: {' '.join(str(error).split())}") from error


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content.

    Raises:
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "radiograph"  # the name does not matter
        ...     _ = path.write_bytes(bytes(128) + b"DICM")
        ...     is_dicom(path)
        True
    """
    with open(path, "rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def open_dicom(path: Path) -> Dataset:
    """Read the tags of a DICOM file; its pixels stay on the disk until they are asked for.

    Raises:
        ValueError: if it is broken, or compressed in a way that is not read.
        OSError: if it cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> str(open_dicom(Path(str(get_testdata_file("CT_small.dcm")))).Modality)
        'CT'
    """
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, JPEGLSNearLossless

    with _faults_in_one_line():
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        # A few deflated kB may grow to any size, and broken JPEG-LS makes GDCM end the process.
        if syntax in (DeflatedExplicitVRLittleEndian, JPEGLSLossless, JPEGLSNearLossless):
            raise ValueError(f"its transfer syntax {syntax.name} is not read: write it with another")
        return dcmread(path, defer_size=_LARGE_ELEMENT)


def read_tags(path: Path) -> DicomTags:
    """What the tags of a DICOM file say.

    Raises:
        ValueError: if it is broken.
        OSError: if it cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> read_tags(Path(str(get_testdata_file("CT_small.dcm")))).fault
        'it is no radiograph (Modality CT)'
    """
    return tags_of(open_dicom(path))


def tags_of(dataset: Dataset) -> DicomTags:
    """What the tags of an open DICOM file say.

    Raises:
        ValueError: if they make no sense.

    Example:
        >>> from pydicom import Dataset
        >>> dataset = Dataset()
        >>> dataset.Modality, dataset.ViewPosition = "DX", "LL"
        >>> tags_of(dataset)
        DicomTags(modality='DX', body_part='', view='LATERAL', has_pixels=False)
    """
    with _faults_in_one_line():
        view = _text(dataset, "ViewPosition") or _view_code(dataset)
        modality, body_part = _text(dataset, "Modality"), _text(dataset, "BodyPartExamined")
        return DicomTags(modality, body_part, _VIEWS.get(view, view), _has_pixels(dataset))


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name) or "").strip().upper()


def _view_code(dataset: Dataset) -> str:
    codes = dataset.get("ViewCodeSequence")
    return _text(codes[0], "CodeMeaning") if codes else ""


def _has_pixels(dataset: Dataset) -> bool:
    return any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def frame_size(dataset: Dataset) -> tuple[int, int]:
    """Width and height that the tags claim, before anything is decoded.

    Raises:
        ValueError: if there is no image, or more than one.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> frame_size(open_dicom(Path(str(get_testdata_file("CT_small.dcm")))))
        (128, 128)
    """
    with _faults_in_one_line():
        if not _has_pixels(dataset):
            raise ValueError(tags_of(dataset).fault)
        if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
            raise ValueError(f"it holds {frames} images")
        return int(dataset.Columns), int(dataset.Rows)


def display_pixels(dataset: Dataset) -> NDArray[np.uint8]:
    """The pixels as a viewer shows them: bone white, air black.

    Rescale or modality LUT, then VOI LUT or (the first) window, then MONOCHROME1 turned over (DICOM PS3.3 C.11.1,
    C.11.2, C.7.6.3.1.2). Without either, 8-bit pixels keep their values, and deeper ones are stretched from the
    darkest to the brightest, padding left aside. Colour becomes luminance.

    Returns:
        Grey pixels 0..255, uint8, shape ``(H, W)``.

    Raises:
        ValueError: if the pixels are missing, broken or of a kind that no radiograph has.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> pixels = display_pixels(open_dicom(Path(str(get_testdata_file("CT_small.dcm")))))
        >>> pixels.shape, pixels.dtype
        ((128, 128), dtype('uint8'))
    """
    interpretation = _text(dataset, "PhotometricInterpretation")
    with _faults_in_one_line():
        if interpretation not in (*_GREY, *_COLOUR):
            raise ValueError(f"its pixels are {interpretation or 'of no known kind'}, not grey or RGB")
        stored = _decode(dataset)
        if interpretation in _COLOUR:
            if stored.dtype != np.uint8:
                raise ValueError("it has colour of more than 8 bits")
            return np.round(stored.astype(np.float32) @ _LUMINANCE).astype(np.uint8)
        values = _display_values(dataset, stored)
        # MONOCHROME1 means that the smallest value is white. It says how to show the values that come *out of* the
        # lookup tables and windows, so it is turned over here, at the end, and not in the stored values.
        return np.round((1 - values if interpretation == "MONOCHROME1" else values) * 255).astype(np.uint8)


def _decode(dataset: Dataset) -> NDArray[Any]:
    """The stored values, shape ``(H, W)``, or ``(H, W, 3)`` in colour."""
    from pydicom.uid import JPEGExtended12Bit

    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and dataset.BitsStored == 12:
        return _decode_extended(dataset)
    pixels: NDArray[Any] = dataset.pixel_array
    return pixels


def _decode_extended(dataset: Dataset) -> NDArray[np.uint16]:
    """Decode a JPEG of 12 bits, which pydicom has no plug-in for."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(dataset.filename))
    if not reader.Read():
        raise ValueError("its JPEG of 12 bits is broken")
    text = reader.GetImage().GetBuffer()  # bytes, which the binding hands over as a str
    pixels = np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint16)
    return pixels.reshape(dataset.Rows, dataset.Columns)


def _display_values(dataset: Dataset, stored: NDArray[Any]) -> Pixels:
    """Stored values as shares 0..1 of the display's range.

    The order is the standard's (PS3.3 C.11): stored values become physical ones by the modality LUT, and a VOI LUT or
    window, which is given in physical values, chooses the part to show.
    """
    from pydicom.pixels.processing import apply_modality_lut

    values: NDArray[Any] = apply_modality_lut(stored, dataset)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are no numbers")
    if dataset.get("VOILUTSequence"):
        return _look_up(dataset, values)
    if window := _window(dataset):
        return _through_window(values.astype(np.float32), *window)
    # Nothing says how to show it. Eight bits are what they are; of deeper values the range in use is unknown.
    if dataset.BitsStored == 8 and stored.dtype == np.uint8 and np.array_equal(values, stored):
        return stored.astype(np.float32) / 255
    return _stretched(values.astype(np.float32), _is_padding(dataset, stored))


def _look_up(dataset: Dataset, values: NDArray[Any]) -> Pixels:
    from pydicom.pixels.processing import apply_voi

    entries, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    # Some makers declare more bits than the entries use, which would show a dark image: their largest is white.
    table = apply_voi(np.arange(first, first + (entries or 2**16)), dataset)
    looked_up: Pixels = apply_voi(np.round(values).astype(np.int32), dataset).astype(np.float32)
    return looked_up / max(1, int(table.max()))


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None where there is none that makes sense."""
    from pydicom.multival import MultiValue

    values = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        first = value[0] if isinstance(value, MultiValue) and value else value
        values.append(float(first) if isinstance(first, int | float) else np.nan)
    center, width = values
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    is_usable = np.isfinite(values).all() and (width > 1 if function == "LINEAR" else width > 0)
    return (center, width, function) if is_usable else None


def _through_window(values: Pixels, center: float, width: float, function: str) -> Pixels:
    """Apply a window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if function == "LINEAR":
        # The standard's LINEAR counts whole values: `width` of them, the first at black and the last at white, so the
        # distance from black to white is one less, and the centre lies between two of them. LINEAR_EXACT has neither.
        center, width = center - 0.5, width - 1
    elif function not in ("LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"the VOI LUT function {function} is not known")
    offset: Pixels = (values - center) / width  # -0.5 at black, 0.5 at white
    if function == "SIGMOID":
        offset = 1 / (1 + np.exp(-4 * offset.clip(-20, 20))) - 0.5
    return (offset + 0.5).clip(0, 1)


def _is_padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Where nothing was exposed, by PixelPaddingValue and PixelPaddingRangeLimit."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    is_padding: NDArray[np.bool_] = (stored >= min(first, last)) & (stored <= max(first, last))
    return is_padding


def _stretched(values: Pixels, is_padding: NDArray[np.bool_]) -> Pixels:
    exposed = values[~is_padding] if not is_padding.all() else values
    low, high = float(exposed.min()), float(exposed.max())
    stretched: Pixels = (values - low) / ((high - low) or 1)
    return stretched.clip(0, 1)
