"""Cutting the margins off a film: scanner borders, padding, collimator frames."""

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
"""A frame ends in an edge along most of the side, and that within so much of the film: the outline of a person does
not."""
_SMALLEST_SHARE = 0.1
"""What is left of a side; a film that would lose more is blank, or something else than a film."""


def cut_margins(pixels: Grey) -> Grey:
    """Cut bright or dark borders off a film, never a part of the person.

    Lines are cut from each side while they are margin. A line is margin if it is *blank* (all of one grey, whatever
    comes next), or if it belongs to a *frame*: it is nearly of the grey that the side begins with, noise and marks
    allowed, and the frame ends in an edge along most of the side. Air around a person has noise and ends in the
    person's outline, so it stays, and so does the wedge of a slanted collimator. Where nothing would be left but one
    grey, nothing is cut.

    Args:
        pixels: grey pixels, uint8, shape ``(H, W)``.

    Returns:
        The part without margins, a view of the pixels, at least a tenth as high and wide.
    """
    film = pixels
    for _ in range(_LAYERS):
        shape = film.shape
        film = film[_margin(film) :]
        film = film[: len(film) - _margin(film[::-1])]
        film = film[:, _margin(film.T) :]
        film = film[:, : film.shape[1] - _margin(film.T[::-1])]
        if film.shape == shape:
            break
    is_enough = all(left >= _SMALLEST_SHARE * side for left, side in zip(film.shape, pixels.shape, strict=True))
    return film if is_enough and np.ptp(film) > 2 * _BLANK_TOLERANCE else pixels


def _margin(film: Grey) -> int:
    """How many lines at the top are margin; none if all of them would be."""
    lines = film[:, :: max(1, film.shape[1] // _SAMPLES)]
    dark, middle, bright = np.percentile(lines[0], [10, 50, 90])
    spread = (bright - dark) / 2.56  # the standard deviation, if it is noise
    if spread > _FRAME_SPREAD:
        return 0
    away = np.abs(lines.astype(np.int16) - round(middle))
    blank = _first(_share(away, _BLANK_TOLERANCE) < _BLANK_SHARE)
    frame = _frame(_share(away, max(_FRAME_TOLERANCE, 4 * spread)))
    margin = max(blank, frame)
    return margin if margin < len(film) else 0


def _frame(shares: NDArray[np.float64]) -> int:
    """How many lines are a frame, by the share of each that has the frame's grey."""
    end = _first(shares < _FRAME_SHARE)
    past_edge = shares[end : end + 1 + round(_EDGE_DEPTH * len(shares))]
    if not (past_edge < _PAST_EDGE_SHARE).any():
        return 0
    whole = np.flatnonzero(shares[:end] >= _BLANK_SHARE)
    return int(whole[-1]) + 1 if len(whole) else 0


def _share(away: NDArray[np.int16], tolerance: float) -> NDArray[np.float64]:
    """The share of each line that is within the tolerance."""
    share: NDArray[np.float64] = (away <= tolerance).mean(axis=1)
    return share


def _first(is_so: NDArray[np.bool_]) -> int:
    """The first place where something is so; the length if it is nowhere."""
    return int(is_so.argmax()) if is_so.any() else len(is_so)
