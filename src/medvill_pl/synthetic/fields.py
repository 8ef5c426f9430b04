"""Scalar fields that radiographs are made of: the grid, smooth steps and noise, one value per pixel.

Everything is float32: NumPy scalars of float64 would turn whole maps into float64, at twice the time and with other
roundings, so numbers that are computed outside a map enter it through ``F``.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvill_pl.synthetic.study import Draw

Map = NDArray[np.floating[Any]]
F = np.float32


def smooth_step(distance: Map, width: float) -> Map:
    """Smooth step from 0 to 1 where a distance passes from ``-width`` to ``width``.

    All edges of the phantom are such steps over a signed distance, so an edge has the same softness, and the same
    look, at every image size.

    Args:
        distance: signed distance to an edge, positive inside, any shape.
        width: half the width of the blurred edge, in the same unit.

    Returns:
        0 (outside) to 1 (inside), float32, of the shape of ``distance``.

    Example:
        >>> smooth_step(np.array([-1.0, 0.0, 0.5, 1.0], dtype=np.float32), 1.0).tolist()
        [0.0, 0.5, 0.84375, 1.0]
    """
    t: Map = np.clip(distance * F(0.5 / width) + F(0.5), 0, 1)
    smooth: Map = t * t * (3 - 2 * t)
    return smooth


@cache
def pixel_grid(size: int) -> tuple[Map, Map]:
    """The centres of the pixels of a square image, x to the right and y downwards.

    Args:
        size: side of the image in pixels.

    Returns:
        x and y from -1 to 1, float32, shape ``(size, size)`` each. They are shared: do not write into them.

    Example:
        >>> x, y = pixel_grid(2)
        >>> x.tolist(), y.tolist()
        ([[-0.5, 0.5], [-0.5, 0.5]], [[-0.5, -0.5], [0.5, 0.5]])
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) * F(2 / size) - 1
    return np.meshgrid(axis, axis, indexing="xy")


@cache
def _noise_bank() -> Map:
    """White noise from which the grain of all images is taken; NumPy has frozen the legacy generator's stream."""
    return np.random.RandomState(1).standard_normal(1 << 21).astype(np.float32)


@cache
def interpolation(size: int, nodes: int) -> Map:
    """Matrix that interpolates ``nodes`` values smoothly to ``size`` pixels.

    Args:
        size: pixels.
        nodes: values that are spread evenly from the first to the last pixel, 2 or more.

    Returns:
        Weights, float32, shape ``(size, nodes)``; each row sums to 1.

    Example:
        >>> [[round(weight, 3) for weight in row] for row in interpolation(2, 2).tolist()]
        [[0.844, 0.156], [0.156, 0.844]]
    """
    position = (np.arange(size) + 0.5) / size * (nodes - 1)
    left = np.minimum(position.astype(int), nodes - 2)
    t = position - left
    t = t * t * (3 - 2 * t)
    matrix = np.zeros((size, nodes), dtype=np.float32)
    matrix[np.arange(size), left] = 1 - t
    matrix[np.arange(size), left + 1] = t
    return matrix


def grain(count: int, draw: Draw) -> Map:
    """Standard normal numbers: a stretch of a fixed bank that begins where the draw says.

    One draw per image in place of one per pixel: drawing anew would take longer than all the rest of an image.

    Args:
        count: how many numbers.
        draw: where the stretch begins.

    Returns:
        float32, shape ``(count,)``; a bank shorter than ``count`` is repeated. Do not write into it.

    Example:
        >>> grain(5, Draw("doctest")).shape
        (5,)
    """
    bank = _noise_bank()
    if count > len(bank):
        return np.resize(bank, count)
    start = int(draw.uniform(0, len(bank) - count))
    return bank[start : start + count]


def texture(size: int, nodes: int, draw: Draw) -> Map:
    """Smooth noise with ``nodes`` bumps per side.

    Args:
        size: side of the image in pixels.
        nodes: bumps per side, 2 or more.
        draw: where the noise is taken from.

    Returns:
        About 0 on average, float32, shape ``(size, size)``.

    Example:
        >>> texture(16, 4, Draw("doctest")).shape
        (16, 16)
    """
    weights = interpolation(size, nodes)
    smooth: Map = weights @ grain(nodes * nodes, draw).reshape(nodes, nodes) @ weights.T
    return smooth
