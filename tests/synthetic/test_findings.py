"""Findings of the phantom: each shows where it was observed, the more the stronger it is, and none hides."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.synthetic.anatomy import Phantom
from medvill_pl.synthetic.findings import paint_finding, paint_findings
from medvill_pl.synthetic.grammar import write_report
from medvill_pl.synthetic.rendering import render
from medvill_pl.synthetic.study import DEVICES, Device, Observation, Side, Study, View, Zone, studies

Image = NDArray[np.float64]

ZONED = ("Lung Lesion", "Lung Opacity", "Consolidation", "Pneumonia")
ONE_SIDED = (*ZONED, "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture")
CENTRAL = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema")
BODIES = range(10)


def study_of(number: int, *observations: Observation, view: View = "AP") -> Study:
    """A study of patient ``number``; equal numbers give equal anatomy, pose and exposure."""
    return Study(f"study-{number}", f"body-{number}", f"body-{number}", view, observations)


def observe(finding: str, strength: float, side: Side | None = None, zone: Zone | None = None) -> Observation:
    return Observation(finding, strength, side, zone or ("mid" if finding in ZONED else None))


def pixels(study: Study, size: int = 64) -> Image:
    return render(study, size).astype(float)


def change(number: int, faint: Observation, strong: Observation, size: int = 64) -> Image:
    """What more of one finding does to the pixels; all else, noise too, is the same."""
    return pixels(study_of(number, strong), size) - pixels(study_of(number, faint), size)


def added_density(without: Study, with_it: Study, size: int = 128) -> Image:
    """What a finding adds to the density of the body, before the exposure."""
    phantoms = Phantom(without, size), Phantom(with_it, size)
    for phantom in phantoms:
        paint_findings(phantom)
    return phantoms[1].density.astype(float) - phantoms[0].density


def centre(image: Image) -> tuple[float, float]:
    """Centre of gravity (x, y), from -1 to 1."""
    weight = np.abs(image)
    axis = (np.arange(len(image)) + 0.5) * 2 / len(image) - 1
    return float(weight.sum(axis=0) @ axis / weight.sum()), float(weight.sum(axis=1) @ axis / weight.sum())


def correlation(a: Image, b: Image) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


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
        added = np.abs(added_density(study_of(number), study_of(number, observe(finding, 0.8, "bilateral"))))
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
        added = np.abs(added_density(study_of(number), study_of(number, observe(finding, 0.16, side))))
        assert added.max() > 0.05
        assert (added > 0.02).sum() > 12


@pytest.mark.parametrize("finding", [f for f in FINDINGS[1:-1] if f not in ("Pneumothorax", "Fracture")])
def test_a_finding_is_denser_than_lung(finding: str) -> None:
    side: Side | None = "right" if finding in ONE_SIDED else "bilateral" if finding == "Edema" else None
    for number in BODIES:
        assert added_density(study_of(number), study_of(number, observe(finding, 0.9, side))).sum() > 0


def test_a_pneumothorax_is_blacker_than_lung() -> None:
    for number in BODIES:
        added = added_density(study_of(number), study_of(number, observe("Pneumothorax", 0.9, "left")))
        assert (added < -0.1).sum() > 4 * (added > 0.1).sum()


def added_by_each(finding: str, view: View, number: int, side: Side, zone: Zone | None = None) -> list[Image]:
    """What the first, the second and the third of a finding's lesions add."""
    observations = [replace(observe(finding, 0.5, side, zone), count=count) for count in (1, 2, 3)]
    each = [study_of(number, view=view), *(study_of(number, observation, view=view) for observation in observations)]
    return [added_density(before, after, 96) for before, after in pairwise(each)]


@pytest.mark.parametrize("zone", ["upper", "mid", "lower"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_nodule_that_is_counted_can_be_seen(side: Side, zone: Zone) -> None:
    hidden = []
    for number in range(24):
        view: View = "AP" if number % 2 else "PA"
        for index, added in enumerate(added_by_each("Lung Lesion", view, number, side, zone)):
            if (added > 0.05).sum() < 7:  # a whole one covers some 33 pixels
                hidden.append((number, view, index))
    assert hidden == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_fracture_that_is_counted_can_be_seen(side: Side) -> None:
    for number in range(24):
        for index, added in enumerate(added_by_each("Fracture", "AP", number, side)):
            assert (np.abs(added) > 0.05).sum() >= 7, (number, index)


def test_what_the_corpus_reports_can_be_seen() -> None:
    in_anatomy = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture")
    for study in islice(studies("train"), 500):
        phantom = Phantom(study, 64)
        for observation in study.observations:
            if observation.finding in in_anatomy or not observation.is_certain:
                continue
            before = phantom.density.copy()
            paint_finding(phantom, observation)
            added = np.abs(phantom.density - before)
            assert added.max() > 0.05, (study.id, observation)
            assert (added > 0.03).sum() >= 4, (study.id, observation)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_adds_metal(device: Device) -> None:
    side: Side | None = "left" if device in ("jugular catheter", "chest tube", "pacemaker") else None
    for number in BODIES:
        added = added_density(
            study_of(number), study_of(number, Observation("Support Devices", 0.2, side, device=device))
        )
        assert added.min() > -1e-5
        assert added.max() > 0.09
        assert (added > 0.05).sum() > 25


@pytest.mark.parametrize("device", ["jugular catheter", "chest tube", "pacemaker"])
def test_a_device_comes_from_its_side(device: Device) -> None:
    def centre_x(number: int, side: Side) -> float:
        seen = Observation("Support Devices", 0.8, side, device=device)
        return centre(added_density(study_of(number), study_of(number, seen)))[0]

    for number in BODIES:
        assert centre_x(number, "left") > centre_x(number, "right") + 0.1


def test_devices_differ() -> None:
    seen = [Observation("Support Devices", 0.8, "left", device=device) for device in DEVICES]
    added = [added_density(study_of(0), study_of(0, observation)) for observation in seen]
    for index, one in enumerate(added):
        for other in added[:index]:
            assert correlation(one, other) < 0.5


# -- graded difficulty --------------------------------------------------------------------------


def auroc(score: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Share of pairs, one of each kind, that the score puts in order."""
    rank = score.argsort().argsort() + 1.0
    positive = int(truth.sum())
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def labelled_images(split: Split, number: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    first = list(islice(studies(split), number))
    images = np.stack([render(study, 64) for study in first]).reshape(number, -1).astype(np.float32)
    return images, np.stack([write_report(study).labels == 1 for study in first])


@pytest.mark.slow
def test_pixels_alone_tell_something_but_not_all() -> None:
    train, truth = labelled_images("train", 1500)
    test, test_truth = labelled_images("test", 500)
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-3
    train, test = (train - mean) / deviation, (test - mean) / deviation
    ridge = 1000 * np.eye(len(train), dtype=np.float32)
    weights = np.linalg.solve(train @ train.T + ridge, (truth - truth.mean(axis=0)).astype(np.float32))
    scores = test @ (train.T @ weights)
    values = [auroc(scores[:, column], test_truth[:, column]) for column in range(len(FINDINGS))]
    assert 0.6 < np.mean(values) < 0.8
    assert max(values) - min(values) > 0.2  # a large heart is easy, a nodule is not
