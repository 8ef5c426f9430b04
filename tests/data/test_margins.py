"""Cutting margins off images with known ones."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medvill_pl import SyntheticDataModule
from medvill_pl.data.images import read_grey
from medvill_pl.data.margins import cut_margins

Grey = NDArray[np.uint8]
Sides = tuple[int, int, int, int]


def cut_sides(radiograph: Grey) -> Sides:
    """Lines cut at the top, the bottom, the left and the right."""
    left = cut_margins(radiograph)
    start = left.__array_interface__["data"][0] - radiograph.__array_interface__["data"][0]
    top, before = divmod(start, radiograph.shape[1])
    return top, radiograph.shape[0] - top - left.shape[0], before, radiograph.shape[1] - before - left.shape[1]


def framed(radiograph: Grey, sides: Sides, value: int, noise: float = 0) -> Grey:
    """A image with a border of so many lines at each side."""
    top, bottom, left, right = sides
    wide = np.pad(radiograph.astype(float), ((top, bottom), (left, right)), constant_values=np.nan)
    border = value + np.random.default_rng(0).normal(0, noise, wide.shape)
    return np.where(np.isnan(wide), border, wide).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def all_phantoms() -> list[Grey]:
    examples = SyntheticDataModule(num_train=32, num_val=4, num_test=4, image_size=256).examples("train")
    return [examples.image(index)[0].numpy() for index in range(32)]


@pytest.fixture(scope="module")
def phantoms(all_phantoms: list[Grey]) -> list[Grey]:
    """Images that were drawn without a collimator."""
    return [radiograph for radiograph in all_phantoms if np.ptp(radiograph[0]) > 0]


def check_cut(radiograph: Grey, sides: Sides, tolerance: int) -> None:
    """At least the border but for the tolerance is cut, and no line of the image."""
    for cut, side in zip(cut_sides(radiograph), sides, strict=True):
        assert side - tolerance <= cut <= side


def test_images_without_margins_stay_whole(phantoms: list[Grey]) -> None:
    for radiograph in phantoms:
        assert cut_sides(radiograph) == (0, 0, 0, 0)


def test_drawn_collimators_are_cut(all_phantoms: list[Grey]) -> None:
    radiographs = [radiograph for radiograph in all_phantoms if np.ptp(radiograph[0]) == 0]
    assert len(radiographs) >= 3
    for radiograph in radiographs:
        is_inside = radiograph != radiograph[0, 0]
        rows, columns = np.flatnonzero(is_inside.mean(axis=1) > 0.5), np.flatnonzero(is_inside.mean(axis=0) > 0.5)
        assert cut_sides(radiograph) == (rows[0], 255 - rows[-1], columns[0], 255 - columns[-1])


SIDES: list[Sides] = [(20, 20, 20, 20), (0, 60, 0, 0), (0, 0, 45, 3), (1, 0, 0, 2), (100, 5, 80, 120)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("value", [0, 255, 128])
def test_plain_borders_are_cut(value: int, sides: Sides, phantoms: list[Grey]) -> None:
    for radiograph in phantoms:
        check_cut(framed(radiograph, sides, value), sides, tolerance=0)


@pytest.mark.parametrize("value", [0, 6, 250])
def test_noisy_borders_are_cut(value: int, phantoms: list[Grey]) -> None:
    # A image whose air has the grey of the border hides where it begins.
    radiographs = [radiograph for radiograph in phantoms if min(np.median(line) for line in sides_of(radiograph)) > 40]
    assert len(radiographs) >= 3
    for radiograph in radiographs:
        sides = (15, 0, 30, 22)
        check_cut(framed(radiograph, sides, value, noise=3), sides, tolerance=0)


def sides_of(radiograph: Grey) -> list[Grey]:
    return [radiograph[0], radiograph[-1], radiograph[:, 0], radiograph[:, -1]]


@pytest.mark.parametrize("value", [0, 4, 250])
def test_noisy_borders_never_cost_a_line_of_the_image(value: int, phantoms: list[Grey]) -> None:
    for radiograph in phantoms:
        check_cut(framed(radiograph, (15, 9, 30, 22), value, noise=3), (15, 9, 30, 22), tolerance=30)


def test_borders_within_borders_are_cut(phantoms: list[Grey]) -> None:
    for radiograph in phantoms:
        both = framed(framed(radiograph, (10, 10, 10, 10), 0), (5, 0, 7, 9), 255)
        check_cut(both, (15, 10, 17, 19), tolerance=0)


def test_text_in_a_border_goes_with_it(phantoms: list[Grey]) -> None:
    radiographs = [radiograph for radiograph in phantoms if np.median(radiograph[0]) > 40]
    assert radiographs
    for radiograph in radiographs:
        black = framed(radiograph, (40, 0, 0, 0), 0)
        black[10:20, 30:70:3] = 255  # letters
        check_cut(black, (40, 0, 0, 0), tolerance=0)


def test_jpeg_does_not_hide_a_border(phantoms: list[Grey], tmp_path: Path) -> None:
    radiographs = [radiograph for radiograph in phantoms if min(np.median(line) for line in sides_of(radiograph)) > 40]
    for radiograph in radiographs:
        Image.fromarray(framed(radiograph, (24, 24, 32, 16), 0)).save(tmp_path / "radiograph.jpg", quality=80)
        check_cut(read_grey(tmp_path / "radiograph.jpg"), (24, 24, 32, 16), tolerance=8)  # a block of a JPEG


def turned(radiograph: Grey, degrees: float) -> Grey:
    """A collimated image on a white plate that is turned a little."""
    mask = Image.new("L", radiograph.shape[::-1], 0)
    mask.paste(255, (30, 30, radiograph.shape[1] - 30, radiograph.shape[0] - 30))
    inside = np.asarray(mask.rotate(degrees)) > 0
    return np.where(inside, radiograph, 250).astype(np.uint8)


@pytest.mark.parametrize("degrees", [1, 3, 10, 30])
def test_slanted_collimator_loses_nothing_of_the_image(degrees: float, phantoms: list[Grey]) -> None:
    for radiograph in phantoms:
        plate = turned(radiograph, degrees)
        rows, columns = np.nonzero(plate != 250)
        inside = (rows.min(), plate.shape[0] - 1 - rows.max(), columns.min(), plate.shape[1] - 1 - columns.max())
        for cut, side in zip(cut_sides(plate), inside, strict=True):
            # A corner of a few pixels may go with the lines it lies in: one in a hundred of each.
            assert cut <= side + 3


@pytest.mark.parametrize("make", [lambda: 0, lambda: 255, lambda: 77], ids=["black", "white", "grey"])
def test_image_of_one_grey_stays_whole(make: Callable[[], int]) -> None:
    assert cut_sides(np.full((64, 48), make(), np.uint8)) == (0, 0, 0, 0)


def test_image_of_two_greys_stays_whole() -> None:
    halves = np.tile(np.repeat(np.array([50, 200], np.uint8), 32), (64, 1))
    assert cut_sides(halves) == cut_sides(halves.T.copy()) == (0, 0, 0, 0)


def test_tiny_picture_on_a_large_plate_stays() -> None:
    plate = np.zeros((400, 400), np.uint8)
    plate[190:210, 190:210] = np.random.default_rng(0).integers(0, 256, (20, 20))
    assert cut_sides(plate) == (0, 0, 0, 0)


def test_person_in_black_air_is_not_touched() -> None:
    down, across = np.mgrid[0:300, 0:300]
    body = 200 * ((down - 220) ** 2 / 200**2 + (across - 150) ** 2 / 110**2 < 1)
    noise = np.random.default_rng(0).normal(6, 2, body.shape)
    radiograph = (body + noise).clip(0, 255).astype(np.uint8)
    cut = cut_margins(radiograph)
    assert (cut > 100).sum() == (radiograph > 100).sum()


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    kind=st.sampled_from(["noise", "stripes", "steps", "corner"]),
    seed=st.integers(0, 9),
)
def test_any_picture_gives_a_part_of_itself(height: int, width: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures: dict[str, Any] = {
        "noise": rng.integers(0, 256, (height, width)),
        "stripes": np.add.outer(np.zeros(height), rng.integers(0, 2, width) * 255),
        "steps": np.add.outer(np.arange(height) // 7 * 20, np.zeros(width)),
        "corner": np.add.outer(np.arange(height) > height // 2, np.arange(width) > width // 2) * 100,
    }
    radiograph = pictures[kind].astype(np.uint8)
    top, bottom, left, right = cut_sides(radiograph)
    assert min(top, bottom, left, right) >= 0
    assert height - top - bottom >= 0.1 * height
    assert width - left - right >= 0.1 * width


def test_cutting_twice_cuts_no_more(phantoms: list[Grey]) -> None:
    for radiograph, value in itertools.product(phantoms[:8], (0, 255)):
        once = cut_margins(framed(radiograph, (9, 8, 7, 6), value)).copy()
        assert cut_sides(once) == (0, 0, 0, 0)


def test_real_images_keep_all_that_is_not_black_or_white(shared_data: Path) -> None:
    """What is cut from real images holds no picture: nearly all of it is of one grey a side."""
    paths = sorted((shared_data / "covid_cxr" / "images").iterdir())[:60]
    assert len(paths) == 60
    num_cut = 0
    for path in paths:
        radiograph = read_grey(path)
        top, bottom, left, right = cut_sides(radiograph)
        num_cut += any((top, bottom, left, right))
        for side in (
            radiograph[:top],
            radiograph[len(radiograph) - bottom :],
            radiograph[:, :left],
            radiograph[:, radiograph.shape[1] - right :],
        ):
            if side.size:
                assert (np.abs(side.astype(int) - np.median(side)) <= 32).mean() > 0.9
    assert 0 < num_cut < 40


def test_real_leg_loses_the_white_of_the_collimator_only(shared_data: Path) -> None:
    top, bottom, left, right = cut_sides(read_grey(shared_data / "dicom" / "RG3_J2KI.dcm"))
    assert (top, bottom) == (0, 0)
    assert 350 < left < 450
    assert 350 < right < 450
