"""Phantom films: the same everywhere, lifelike in the large, and showing what was observed where it was observed."""

from dataclasses import replace
from itertools import groupby, islice, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.synthetic.film import _Film, render
from medvill_pl.synthetic.grammar import write_report
from medvill_pl.synthetic.study import DEVICES, Device, Observation, Side, Study, View, Zone, studies

Picture = NDArray[np.float64]

ZONED = ("Lung Lesion", "Lung Opacity", "Consolidation", "Pneumonia")
ONE_SIDED = (*ZONED, "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture")
CENTRAL = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema")
BODIES = range(10)


def film(number: int, *observations: Observation, view: View = "AP") -> Study:
    """A film of patient ``number``; equal numbers give equal anatomy, pose and exposure."""
    return Study(f"film-{number}", f"body-{number}", f"body-{number}", view, observations)


def observe(finding: str, strength: float, side: Side | None = None, zone: Zone | None = None) -> Observation:
    return Observation(finding, strength, side, zone or ("mid" if finding in ZONED else None))


def pixels(study: Study, size: int = 64) -> Picture:
    return render(study, size).astype(float)


def change(number: int, faint: Observation, strong: Observation, size: int = 64) -> Picture:
    """What more of one finding does to the pixels; all else, noise too, is the same."""
    return pixels(film(number, strong), size) - pixels(film(number, faint), size)


def added_density(without: Study, with_it: Study, size: int = 128) -> Picture:
    """What a finding adds to the density of the body, before the exposure."""
    films = _Film(without, size), _Film(with_it, size)
    for painted in films:
        painted.paint_anatomy()
        painted.paint_findings()
    return films[1].density.astype(float) - films[0].density


def centre(picture: Picture) -> tuple[float, float]:
    """Centre of gravity (x, y), from -1 to 1."""
    weight = np.abs(picture)
    axis = (np.arange(len(picture)) + 0.5) * 2 / len(picture) - 1
    return float(weight.sum(axis=0) @ axis / weight.sum()), float(weight.sum(axis=1) @ axis / weight.sum())


def correlation(a: Picture, b: Picture) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# -- the same everywhere ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 50, 64, 128, 512])
def test_a_film_is_a_square_of_grey_bytes(size: int) -> None:
    picture = render(next(studies("train")), size)
    assert picture.shape == (size, size)
    assert picture.dtype == np.uint8
    assert picture.min() < 40
    assert picture.max() > 150


def test_size_is_128_unless_given() -> None:
    assert render(next(studies("train"))).shape == (128, 128)


def test_large_films_render() -> None:
    assert render(next(studies("train")), 1536).shape == (1536, 1536)


@pytest.mark.parametrize(
    ("place", "means"),
    [
        (
            0,
            [
                [157.8, 167.4, 175.4, 138.0],
                [126.3, 120.6, 157.9, 155.6],
                [135.1, 171.0, 176.3, 120.7],
                [217.7, 227.2, 205.8, 135.3],
            ],
        ),
        (
            3,
            [
                [44.0, 131.5, 160.0, 89.8],
                [96.6, 140.8, 150.0, 134.8],
                [53.9, 159.3, 189.7, 120.2],
                [50.7, 212.0, 207.7, 163.7],
            ],
        ),
    ],
)
def test_a_version_of_the_films_never_changes(place: int, means: list[list[int]]) -> None:
    picture = pixels(next(islice(studies("train"), place, None)))
    blocks = picture.reshape(4, 16, 4, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, means, atol=1)  # a grey level, for other machines' rounding


def test_a_film_does_not_depend_on_what_was_rendered_before() -> None:
    first = list(islice(studies("train"), 6))
    forwards = [render(study, 64) for study in first]
    backwards = []
    for study in reversed(first):
        render(study, 48)
        backwards.insert(0, render(study, 64))
    np.testing.assert_array_equal(forwards, backwards)


def test_a_large_film_resembles_the_small_one() -> None:
    for study in islice(studies("train"), 6):
        large = pixels(study, 512).reshape(128, 4, 128, 4).mean(axis=(1, 3))
        assert correlation(large, pixels(study, 128)) > 0.97


# -- patients -----------------------------------------------------------------------------------


def test_no_two_films_are_alike() -> None:
    pictures = {render(study, 32).tobytes() for study in islice(studies("train"), 200)}
    assert len(pictures) == 200


def test_studies_of_a_patient_share_anatomy() -> None:
    own, other = [], []
    for number in range(40):
        first, again = film(number), replace(film(number), id=f"later-{number}")
        stranger = replace(again, body=f"stranger-{number}")  # with the pose and noise of the later film
        own.append(correlation(pixels(first, 32), pixels(again, 32)))
        other.append(correlation(pixels(first, 32), pixels(stranger, 32)))
    assert np.mean(own) > np.mean(other) + 0.02
    assert max(own) < 0.99  # each film has a pose and an exposure of its own


def test_studies_of_a_patient_in_the_corpus_resemble_each_other() -> None:
    groups = [list(group) for _, group in groupby(islice(studies("train"), 400), lambda study: study.patient_id)]
    pictures = [[pixels(study, 32) for study in group] for group in groups]
    own = [correlation(a, b) for a, b, *_ in (group for group in pictures if len(group) > 1)]
    other = [correlation(a[0], b[0]) for a, b in pairwise(pictures)]
    assert np.mean(own) > np.mean(other)


def test_projection_changes_the_film() -> None:
    assert all((pixels(film(n, view="AP")) != pixels(film(n, view="PA"))).mean() > 0.5 for n in range(4))


# -- anatomy ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mean_healthy() -> Picture:
    """The mean of healthy films, in which poses and noise cancel."""
    return np.mean([pixels(film(number)) for number in range(48)], axis=0)


def patch(picture: Picture, x: float, y: float) -> float:
    """Mean grey around a place of the film."""
    column, row = (round((value + 1) / 2 * len(picture)) for value in (x, y))
    return float(picture[row - 2 : row + 3, column - 2 : column + 3].mean())


def test_lungs_are_darker_than_what_surrounds_them(mean_healthy: Picture) -> None:
    for lung in (patch(mean_healthy, -0.4, -0.15), patch(mean_healthy, 0.42, -0.2)):
        assert lung + 40 < patch(mean_healthy, 0.05, 0.15)  # heart
        assert lung + 40 < patch(mean_healthy, 0.0, -0.2)  # mediastinum
        assert lung + 60 < patch(mean_healthy, -0.4, 0.75)  # abdomen


def test_heart_lies_on_the_left_of_the_patient(mean_healthy: Picture) -> None:
    assert patch(mean_healthy, 0.28, 0.15) > patch(mean_healthy, -0.28, 0.15) + 20


def test_air_around_the_body_is_black(mean_healthy: Picture) -> None:
    assert mean_healthy[:3, :3].mean() < 40
    assert mean_healthy[:3, -3:].mean() < 60


def test_lead_marker_names_the_side_it_stands_on() -> None:
    # An L is wider at the foot than at the top, an R wider at the top; the patient's left is on the right.
    seen = []
    for number in range(40):
        corner = render(film(number), 128)[:26, :] >= 240
        for side, half in (("R", corner[:, :26]), ("L", corner[:, -26:])):
            rows = half.sum(axis=1)[half.any(axis=1)]
            if len(rows) == 9:  # not cut by the collimator
                assert (rows[-1] > rows[0]) == (side == "L")
                seen.append(side)
    assert seen.count("L") > 5
    assert seen.count("R") > 5


# -- findings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("finding", ONE_SIDED)
def test_a_finding_shows_on_its_side(finding: str, side: Side) -> None:
    for number in BODIES:
        changed = np.abs(change(number, observe(finding, 0.02, side), observe(finding, 1.0, side)))
        on_side = changed[:, 32:] if side == "left" else changed[:, :32]
        assert changed.max() > 25
        assert on_side.sum() > 0.85 * changed.sum()


@pytest.mark.parametrize("finding", ["Atelectasis", "Pleural Effusion"])
def test_a_bilateral_finding_shows_on_both_sides(finding: str) -> None:
    for number in BODIES:
        added = np.abs(added_density(film(number), film(number, observe(finding, 0.8, "bilateral"))))
        assert added[:, :64].max() > 0.1
        assert added[:, 64:].max() > 0.1


@pytest.mark.parametrize("finding", CENTRAL)
def test_a_central_finding_shows_on_both_sides_of_the_midline(finding: str) -> None:
    side: Side | None = "bilateral" if finding == "Edema" else None
    for number in BODIES:
        changed = np.abs(change(number, observe(finding, 0.02, side), observe(finding, 1.0, side)))
        assert changed.max() > 40
        assert 0.3 < changed[:, 32:].sum() / changed.sum() < 0.8


@pytest.mark.parametrize("finding", ZONED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_finding_shows_in_its_zone(finding: str, side: Side) -> None:
    zones: tuple[Zone, ...] = ("upper", "mid", "lower")
    for number in BODIES:
        heights = [
            centre(change(number, observe(finding, 0.02, side, zone), observe(finding, 1.0, side, zone)))[1]
            for zone in zones
        ]
        assert heights[0] + 0.15 < heights[1] < heights[2] - 0.1


@pytest.mark.parametrize("finding", FINDINGS[1:-1])
def test_a_finding_shows_the_more_the_stronger_it_is(finding: str) -> None:
    side: Side | None = "left" if finding in ONE_SIDED else "bilateral" if finding == "Edema" else None
    for number in BODIES:
        faint = observe(finding, 0.02, side)
        total = [
            np.abs(change(number, faint, observe(finding, strength, side))).sum() for strength in (0.2, 0.45, 0.75, 1.0)
        ]
        assert total == sorted(total)
        assert total[-1] > 1.4 * total[0]


@pytest.mark.parametrize("finding", FINDINGS[1:-1])
def test_even_a_faint_finding_is_there(finding: str) -> None:
    side: Side | None = "right" if finding in ONE_SIDED else "bilateral" if finding == "Edema" else None
    for number in BODIES:
        added = np.abs(added_density(film(number), film(number, observe(finding, 0.16, side))))
        assert added.max() > 0.05
        assert (added > 0.02).sum() > 12


@pytest.mark.parametrize("finding", [f for f in FINDINGS[1:-1] if f not in ("Pneumothorax", "Fracture")])
def test_a_finding_is_denser_than_lung(finding: str) -> None:
    side: Side | None = "right" if finding in ONE_SIDED else "bilateral" if finding == "Edema" else None
    for number in BODIES:
        assert added_density(film(number), film(number, observe(finding, 0.9, side))).sum() > 0


def test_a_pneumothorax_is_blacker_than_lung() -> None:
    for number in BODIES:
        added = added_density(film(number), film(number, observe("Pneumothorax", 0.9, "left")))
        assert (added < -0.1).sum() > 4 * (added > 0.1).sum()


def added_by_each(finding: str, view: View, number: int, side: Side, zone: Zone | None = None) -> list[Picture]:
    """What the first, the second and the third of a finding's lesions add."""
    shown = [replace(observe(finding, 0.5, side, zone), count=count) for count in (1, 2, 3)]
    films = [film(number, view=view), *(film(number, observation, view=view) for observation in shown)]
    return [added_density(before, after, 96) for before, after in pairwise(films)]


@pytest.mark.parametrize("zone", ["upper", "mid", "lower"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_nodule_that_is_counted_can_be_seen(side: Side, zone: Zone) -> None:
    hidden = []
    for number in range(24):
        view: View = "AP" if number % 2 else "PA"
        for place, added in enumerate(added_by_each("Lung Lesion", view, number, side, zone)):
            if (added > 0.05).sum() < 7:  # a whole one covers some 33 pixels
                hidden.append((number, view, place))
    assert hidden == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_fracture_that_is_counted_can_be_seen(side: Side) -> None:
    for number in range(24):
        for place, added in enumerate(added_by_each("Fracture", "AP", number, side)):
            assert (np.abs(added) > 0.05).sum() >= 7, (number, place)


def test_what_the_corpus_reports_can_be_seen() -> None:
    in_anatomy = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture")
    for study in islice(studies("train"), 500):
        painted = _Film(study, 64)
        painted.paint_anatomy()
        for observation in study.observations:
            if observation.finding in in_anatomy or not observation.is_certain:
                continue
            before = painted.density.copy()
            painted.study = replace(study, observations=(observation,))
            painted.paint_findings()
            added = np.abs(painted.density - before)
            assert added.max() > 0.05, (study.id, observation)
            assert (added > 0.03).sum() >= 4, (study.id, observation)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_adds_metal(device: Device) -> None:
    side: Side | None = "left" if device in ("jugular catheter", "chest tube", "pacemaker") else None
    for number in BODIES:
        added = added_density(film(number), film(number, Observation("Support Devices", 0.2, side, device=device)))
        assert added.min() > -1e-5
        assert added.max() > 0.09
        assert (added > 0.05).sum() > 25


@pytest.mark.parametrize("device", ["jugular catheter", "chest tube", "pacemaker"])
def test_a_device_comes_from_its_side(device: Device) -> None:
    def place(number: int, side: Side) -> float:
        seen = Observation("Support Devices", 0.8, side, device=device)
        return centre(added_density(film(number), film(number, seen)))[0]

    for number in BODIES:
        assert place(number, "left") > place(number, "right") + 0.1


def test_devices_differ() -> None:
    seen = [Observation("Support Devices", 0.8, "left", device=device) for device in DEVICES]
    added = [added_density(film(0), film(0, observation)) for observation in seen]
    for place, one in enumerate(added):
        for other in added[:place]:
            assert correlation(one, other) < 0.5


# -- graded difficulty --------------------------------------------------------------------------


def auroc(score: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Share of pairs, one of each kind, that the score puts in order."""
    rank = score.argsort().argsort() + 1.0
    positive = int(truth.sum())
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def labelled_films(split: Split, number: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    first = list(islice(studies(split), number))
    pictures = np.stack([render(study, 64) for study in first]).reshape(number, -1).astype(np.float32)
    return pictures, np.stack([write_report(study).labels == 1 for study in first])


@pytest.mark.slow
def test_pixels_alone_tell_something_but_not_all() -> None:
    train, truth = labelled_films("train", 1500)
    test, test_truth = labelled_films("test", 500)
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-3
    train, test = (train - mean) / deviation, (test - mean) / deviation
    ridge = 1000 * np.eye(len(train), dtype=np.float32)
    weights = np.linalg.solve(train @ train.T + ridge, (truth - truth.mean(axis=0)).astype(np.float32))
    scores = test @ (train.T @ weights)
    values = [auroc(scores[:, place], test_truth[:, place]) for place in range(len(FINDINGS))]
    assert 0.6 < np.mean(values) < 0.8
    assert max(values) - min(values) > 0.2  # a large heart is easy, a nodule is not
