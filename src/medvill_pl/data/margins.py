"""Cutting the margins off a radiograph: scanner borders, padding, collimator frames."""

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

_SAMPLES = 384
"""Pixels of a line that are looked at."""
_LAYERS = 4
"""A white frame may lie around a black one."""
_BLANK_TOLERANCE, _BLANK_SHARE = 2, 0.99
"""A blank line shows nothing: nearly all of its pixels have one value, but for what JPEG does to them."""
_FRAME_TOLERANCE, _FRAME_SPREAD, _FRAME_SHARE = 10, 8, 0.8
"""A line of a frame may have noise, and marks or text on part of it."""
_PAST_EDGE_SHARE, _EDGE_DEPTH = 0.4, 0.02
"""A frame ends in an edge along most of the side, and within this share of the image: the outline of a person does
not."""
_SMALLEST_SHARE = 0.1
"""What must be left of a side; an image that would lose more is blank, or no radiograph."""


def cut_margins(pixels: Grey) -> Grey:
    """Cut bright or dark borders off a radiograph, never a part of the person.

    Lines are cut from each side while they are margin. A line is margin if it is *blank* (all of one grey, whatever
    comes next), or if it belongs to a *frame*: it is nearly of the grey that the side begins with, noise and marks
    allowed, and the frame ends in an edge along most of the side. Air around a person has noise and ends in the
    person's outline, so it stays, and so does the wedge of a slanted collimator. Where nothing would be left but one
    grey, nothing is cut.

    Args:
        pixels: grey pixels, uint8, shape ``(H, W)``.

    Returns:
        The part without margins, a view of the pixels, at least a tenth as high and wide.

    Example:
        >>> chest = np.random.default_rng(0).integers(60, 200, (40, 50), dtype=np.uint8)
        >>> cut_margins(np.pad(chest, ((8, 0), (5, 12)), constant_values=255)).shape
        (40, 50)
    """
    image = pixels
    # Each side's frame is judged by the lines that the other sides left, so a frame around a frame needs another turn.
    for _ in range(_LAYERS):
        shape = image.shape
        image = image[_margin(image) :]
        image = image[: len(image) - _margin(image[::-1])]
        image = image[:, _margin(image.T) :]
        image = image[:, : image.shape[1] - _margin(image.T[::-1])]
        if image.shape == shape:
            break
    is_enough = all(left >= _SMALLEST_SHARE * side for left, side in zip(image.shape, pixels.shape, strict=True))
    return image if is_enough and np.ptp(image) > 2 * _BLANK_TOLERANCE else pixels


def _margin(image: Grey) -> int:
    """How many lines at the top are margin; none if all of them would be."""
    lines = image[:, :: max(1, image.shape[1] // _SAMPLES)]  # a sample tells as much, and is quick
    # What margin looks like on this side is read off its outermost line: percentiles, for text and marks on a frame
    # must not move them.
    dark, middle, bright = np.percentile(lines[0], [10, 50, 90])
    spread = (bright - dark) / 2.56  # the standard deviation, if it is noise
    if spread > _FRAME_SPREAD:
        return 0
    distance = np.abs(lines.astype(np.int16) - round(middle))
    blank = _first(_share(distance, _BLANK_TOLERANCE) < _BLANK_SHARE)
    frame = _frame(_share(distance, max(_FRAME_TOLERANCE, 4 * spread)))
    margin = max(blank, frame)
    return margin if margin < len(image) else 0


def _frame(shares: NDArray[np.float64]) -> int:
    """How many lines are a frame, by the share of each that has the frame's grey."""
    # Air around a person looks like a frame, line by line; only how it ends tells them apart. A frame ends in a
    # straight edge: within a few lines most of the line is something else. Air ends along the outline of the person,
    # whose share of a line grows slowly.
    end = _first(shares < _FRAME_SHARE)
    past_edge = shares[end : end + 1 + round(_EDGE_DEPTH * len(shares))]
    if not (past_edge < _PAST_EDGE_SHARE).any():
        return 0
    # The last lines before the edge may already hold some of the person: cut only as far as lines are all frame.
    whole = np.flatnonzero(shares[:end] >= _BLANK_SHARE)
    return int(whole[-1]) + 1 if len(whole) else 0


def _share(distance: NDArray[np.int16], tolerance: float) -> NDArray[np.float64]:
    """The share of each line that is within the tolerance."""
    share: NDArray[np.float64] = (distance <= tolerance).mean(axis=1)
    return share


def _first(is_true: NDArray[np.bool_]) -> int:
    """The first position that is True; the length if none is."""
    return int(is_true.argmax()) if is_true.any() else len(is_true)
