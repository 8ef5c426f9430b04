"""Anatomy of the phantom: where things lie, how patients differ, and what the projection changes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl.synthetic.anatomy import Body, Coordinates, Phantom
from medvill_pl.synthetic.rendering import render
from medvill_pl.synthetic.study import Draw, Observation, Study, View

Image = NDArray[np.float64]


def study_of(number: int, *observations: Observation, view: View = "AP") -> Study:
    """A study of patient ``number``; equal numbers give equal anatomy, pose and exposure."""
    return Study(f"study-{number}", f"body-{number}", f"body-{number}", view, observations)


# -- coordinates ---------------------------------------------------------------------------------


def test_coordinates_are_a_turned_scaled_and_shifted_grid() -> None:
    for number in range(10):
        at = Coordinates(64, Draw(f"pose-{number}"))
        right, down = np.diff(at.x, axis=1).mean(), np.diff(at.y, axis=0).mean()
        assert right == pytest.approx(down, abs=1e-5)
        assert 2 / 64 / 1.1 * 0.98 < right < 2 / 64 / 0.84
        assert abs(at.x.mean()) < 0.2
        assert abs(at.y.mean()) < 0.2


def test_a_window_holds_the_pixels_around_a_position_and_their_offsets() -> None:
    at = Coordinates(64, Draw("pose"))
    part, dx, dy = at.window(0.3, -0.2, 0.1)
    np.testing.assert_allclose(at.x[part] - dx, 0.3, atol=1e-6)
    np.testing.assert_allclose(at.y[part] - dy, -0.2, atol=1e-6)
    inside = (np.abs(at.x - 0.3) < 0.1) & (np.abs(at.y + 0.2) < 0.1)
    assert ((np.abs(dx) < 0.1) & (np.abs(dy) < 0.1)).sum() == inside.sum() > 0
    assert at.window(5.0, 5.0, 0.1)[1].size == 0


def test_the_left_of_the_patient_is_on_the_right_of_the_image() -> None:
    at = Coordinates(64, Draw("pose"))
    assert at.side_mask("left")[:, -8:].all()
    assert at.side_mask("right")[:, :8].all()
    assert ((at.side_mask("left") + at.side_mask("right")) <= 1).all()


# -- bodies --------------------------------------------------------------------------------------


def test_projection_changes_heart_and_diaphragm_of_the_same_patient() -> None:
    for number in range(10):
        ap, pa = (Body.of(study_of(number, view=view)) for view in ("AP", "PA"))
        assert ap.heart_width > pa.heart_width
        assert ap.dome < pa.dome  # higher in the image
        assert ap.chest_width == pa.chest_width


def test_findings_of_the_anatomy_are_in_the_phantom_from_the_start() -> None:
    healthy = Phantom(study_of(0), 64)
    enlarged = Phantom(study_of(0, Observation("Cardiomegaly", 1.0)), 64)
    assert enlarged.heart.sum() > 1.1 * healthy.heart.sum()
    raised = Phantom(study_of(0, Observation("Atelectasis", 1.0, "left")), 64)
    lifted = healthy.diaphragm - raised.diaphragm
    assert (lifted[healthy.x > 0] > 0.05).all()
    assert (lifted[healthy.x < 0] == 0).all()


# -- images of the healthy -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mean_healthy() -> Image:
    """The mean of healthy images, in which poses and noise cancel."""
    return np.mean([render(study_of(number), 64).astype(float) for number in range(48)], axis=0)


def patch(image: Image, x: float, y: float) -> float:
    """Mean grey around a position in the image."""
    column, row = (round((value + 1) / 2 * len(image)) for value in (x, y))
    return float(image[row - 2 : row + 3, column - 2 : column + 3].mean())


def test_lungs_are_darker_than_what_surrounds_them(mean_healthy: Image) -> None:
    for lung in (patch(mean_healthy, -0.4, -0.15), patch(mean_healthy, 0.42, -0.2)):
        assert lung + 40 < patch(mean_healthy, 0.05, 0.15)  # heart
        assert lung + 40 < patch(mean_healthy, 0.0, -0.2)  # mediastinum
        assert lung + 60 < patch(mean_healthy, -0.4, 0.75)  # abdomen


def test_heart_lies_on_the_left_of_the_patient(mean_healthy: Image) -> None:
    assert patch(mean_healthy, 0.28, 0.15) > patch(mean_healthy, -0.28, 0.15) + 20


def test_air_around_the_body_is_black(mean_healthy: Image) -> None:
    assert mean_healthy[:3, :3].mean() < 40
    assert mean_healthy[:3, -3:].mean() < 60
