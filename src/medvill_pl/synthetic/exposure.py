"""Exposure: from a map of density to the pixels of a radiograph, with the differences between machines.

Contrast, brightness, noise, markers and margins differ from image to image and say nothing of the patient: what a model
must learn to ignore.
"""

import numpy as np
from numpy.typing import NDArray

from medvill_pl.synthetic.fields import F, Map, grain, pixel_grid
from medvill_pl.synthetic.study import Draw, View


def expose(density: Map, draw: Draw, view: View) -> NDArray[np.uint8]:
    """Expose a map of density: contrast, brightness, noise, marker and collimator.

    Args:
        density: about 0 (air) to 1 (metal), float32, shape ``(size, size)``; it does not change.
        draw: the random choices of this radiograph; the exposure's come after those of all painting.
        view: a portable machine (AP) is noisier.

    Returns:
        Grey pixels, 0 black to 255 white, uint8, shape ``(size, size)``.

    Example:
        >>> pixels = expose(np.full((64, 64), 0.5, dtype=np.float32), Draw("doctest"), "PA")
        >>> pixels.shape, pixels.dtype
        ((64, 64), dtype('uint8'))
    """
    size = len(density)
    gain, gamma = draw.uniform(0.85, 1.3), draw.uniform(0.65, 1.5)
    tilt = F(draw.uniform(-0.06, 0.06))  # the tube's heel effect: one half of the image gets more radiation
    grid_x, grid_y = pixel_grid(size)
    image = np.clip(density * F(gain) + tilt * grid_x, 0.02, 1) ** F(gamma)
    noise = draw.uniform(0.012, 0.03) * (1.2 if view == "AP" else 1.0)
    # Quantum noise: where the body is dense, few quanta arrive, and the bright pixel is noisy. Variance ~ brightness.
    image += grain(size * size, draw).reshape(size, size) * F(noise) * np.sqrt(image)
    if draw.chance(0.7):
        _stamp_marker(image, draw)
    if draw.chance(0.3):
        edge = draw.uniform(0.93, 0.98)
        image[(np.abs(grid_x) > edge) | (np.abs(grid_y) > edge)] = 0.02  # the collimator
    pixels: NDArray[np.uint8] = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _stamp_marker(image: Map, draw: Draw) -> None:
    """Put a lead marker, L or R, into the upper corner of its side."""
    size = len(image)
    letter = "L" if draw.chance(0.5) else "R"
    scale = max(1, size // 128)
    stamp = np.kron(_GLYPHS[letter], np.ones((scale, scale), dtype=np.float32))
    row = int(size * draw.uniform(0.05, 0.12))
    column = int(size * draw.uniform(0.05, 0.1))
    column = column if letter == "R" else size - column - stamp.shape[1]  # the patient's left is on the right
    area = image[row : row + stamp.shape[0], column : column + stamp.shape[1]]
    np.maximum(area, stamp * F(0.95), out=area)


def _glyph(rows: str) -> Map:
    return np.array([[pixel == "#" for pixel in row] for row in rows.split()], dtype=np.float32)


_GLYPHS = {
    "L": _glyph("##..... ##..... ##..... ##..... ##..... ##..... ##..... ####### #######"),
    "R": _glyph("######. ####### ##...## ##...## ######. #####.. ##.###. ##..### ##...##"),
}
