"""Exposure: grey bytes, differences that follow from the draw alone, and a lead marker on the right side."""

import numpy as np

from medvill_pl.synthetic.exposure import expose
from medvill_pl.synthetic.rendering import render
from medvill_pl.synthetic.study import Draw, Study


def ramp(size: int = 64) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Densities from air to metal, from left to right."""
    return np.tile(np.linspace(0, 1, size, dtype=np.float32), (size, 1))


def test_denser_is_brighter_and_the_map_stays_as_it_was() -> None:
    density = ramp()
    for number in range(10):
        inner = expose(density, Draw(f"exposure-{number}"), "PA")[20:-8, 8:-8].astype(float).mean(axis=0)
        assert inner[-8:].mean() > inner[20:28].mean() > inner[:8].mean()
    np.testing.assert_array_equal(density, ramp())


def test_exposures_differ_and_follow_from_the_draw() -> None:
    images = {expose(ramp(), Draw(f"exposure-{number % 10}"), "PA").tobytes() for number in range(20)}
    assert len(images) == 10


def test_a_portable_machine_is_noisier() -> None:
    flat = np.full((64, 64), 0.5, dtype=np.float32)
    for number in range(5):
        inner = [
            expose(flat, Draw(f"exposure-{number}"), view)[20:-8, 8:-8].astype(float).std() for view in ("AP", "PA")
        ]
        assert inner[0] > inner[1]


def test_lead_marker_names_the_side_it_stands_on() -> None:
    # An L is wider at the foot than at the top, an R wider at the top; the patient's left is on the right.
    sides = []
    for number in range(40):
        name = f"study-{number}"
        corner = render(Study(name, name, name, "AP", ()), 128)[:26, :] >= 240
        for side, half in (("R", corner[:, :26]), ("L", corner[:, -26:])):
            rows = half.sum(axis=1)[half.any(axis=1)]
            if len(rows) == 9:  # not cropped by the collimator
                assert (rows[-1] > rows[0]) == (side == "L")
                sides.append(side)
    assert sides.count("L") > 5
    assert sides.count("R") > 5
