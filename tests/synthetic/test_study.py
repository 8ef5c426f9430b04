"""The embedded corpus' patients: the same on every machine, varied, and in agreement with their own rules."""

import hashlib
from collections import Counter
from itertools import groupby, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.synthetic.study import DEVICES, Draw, Observation, Study, studies

ONE_SIDE = {"left", "right"}
ZONES = {"upper", "mid", "lower"}
COUNTS = {1, 2, 3}
# What each finding may say: sides, zones, counts.
ATTRIBUTES: dict[str, tuple[set[str | None], set[str | None], set[int]]] = {
    "Enlarged Cardiomediastinum": ({None}, {None}, {1}),
    "Cardiomegaly": ({None}, {None}, {1}),
    "Lung Lesion": (ONE_SIDE, ZONES, COUNTS),
    "Lung Opacity": (ONE_SIDE, ZONES, {1}),
    "Edema": ({"bilateral"}, {None}, {1}),
    "Consolidation": (ONE_SIDE, ZONES, {1}),
    "Pneumonia": (ONE_SIDE, ZONES, {1}),
    "Atelectasis": (ONE_SIDE | {"bilateral"}, {None}, {1}),
    "Pneumothorax": (ONE_SIDE, {None}, {1}),
    "Pleural Effusion": (ONE_SIDE | {"bilateral"}, {None}, {1}),
    "Pleural Other": (ONE_SIDE, {None}, {1}),
    "Fracture": (ONE_SIDE, {None}, COUNTS),
    "Support Devices": (ONE_SIDE | {None}, {None}, {1}),
}


def take(split: Split, number: int, seed: int = 0) -> list[Study]:
    return list(islice(studies(split, seed), number))


@pytest.fixture(scope="module")
def train() -> list[Study]:
    return take("train", 3000)


@pytest.fixture(scope="module")
def observations(train: list[Study]) -> list[Observation]:
    return [observation for study in train for observation in study.observations]


@pytest.mark.parametrize(
    ("split", "seed", "ids", "digest"),
    [
        ("train", 0, ["train-0-p000000-s0", "train-0-p000000-s1", "train-0-p000000-s2"], "a32264fdd7e379c8"),
        ("test", 0, ["test-0-p000000-s0", "test-0-p000001-s0", "test-0-p000001-s1"], "9513244b8163cc52"),
        ("val", 7, ["val-7-p000000-s0", "val-7-p000000-s1", "val-7-p000000-s2"], "efde31329f910ab3"),
    ],
)
def test_a_version_of_the_corpus_never_changes(split: Split, seed: int, ids: list[str], digest: str) -> None:
    first = take(split, 200, seed)
    assert [study.id for study in first[:3]] == ids
    assert hashlib.sha256(repr(first).encode()).hexdigest()[:16] == digest


def test_one_study_reads_as_pinned() -> None:
    consolidation = Observation("Consolidation", 0.3461, "left", "mid")
    pneumonia = Observation("Pneumonia", 0.9721, "right", "lower")
    patient = "train-0-p000000"
    assert next(studies("train")) == Study(f"{patient}-s0", patient, patient, "PA", (consolidation, pneumonia))


def test_splits_share_no_patient_and_no_study() -> None:
    splits = [take(split, 1000) for split in ("train", "val", "test")]
    patients = [{study.patient_id for study in split} for split in splits]
    bodies = [{study.body for study in split} for split in splits]
    for names in (patients, bodies):
        assert sum(map(len, names)) == len(set.union(*names))
    assert len({study.id for split in splits for study in split}) == 3000


def test_splits_show_different_findings() -> None:
    train, test = ([study.observations for study in take(split, 200)] for split in ("train", "test"))
    assert sum(a == b for a, b in zip(train, test, strict=True)) < 40  # studies without a finding agree


def test_another_seed_gives_another_corpus_of_the_same_kind() -> None:
    corpora = [take("train", 1500, seed) for seed in (0, 1)]
    assert not {s.id for s in corpora[0]} & {s.id for s in corpora[1]}
    assert [s.observations for s in corpora[0]] != [s.observations for s in corpora[1]]
    rates = [sum(bool(s.find("Edema")) for s in corpus) / 1500 for corpus in corpora]
    assert rates[0] == pytest.approx(rates[1], abs=0.06)


def test_patients_have_one_to_four_studies(train: list[Study]) -> None:
    groups = [list(group) for _, group in groupby(train, lambda study: study.patient_id)]
    assert len(groups) == len({study.patient_id for study in train})  # a patient's studies stand together
    for group in groups:
        assert len({study.body for study in group}) == 1
        assert [study.id for study in group] == [f"{group[0].patient_id}-s{number}" for number in range(len(group))]
    assert len({group[0].body for group in groups}) == len(groups)
    complete = Counter(len(group) for group in groups[:-1])
    shares = [complete[size] / (len(groups) - 1) for size in (1, 2, 3, 4)]
    assert set(complete) == {1, 2, 3, 4}
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.04)


@pytest.mark.parametrize("finding", FINDINGS[1:])
def test_a_finding_is_neither_rare_nor_common(train: list[Study], finding: str) -> None:
    assert 0.05 < sum(bool(study.find(finding)) for study in train) / len(train) < 0.3


@pytest.mark.parametrize("finding", FINDINGS[1:])
def test_a_finding_takes_all_its_values_and_no_others(observations: list[Observation], finding: str) -> None:
    own = [observation for observation in observations if observation.finding == finding]
    sides, zones, counts = ATTRIBUTES[finding]
    assert {observation.side for observation in own} == sides
    assert {observation.zone for observation in own} == zones
    assert {observation.count for observation in own} == counts
    assert {observation.severity for observation in own} == {"mild", "moderate", "severe"}
    assert {observation.is_certain for observation in own} == (
        {True} if finding == "Support Devices" else {True, False}
    )
    assert all(0.02 <= observation.strength <= 1 for observation in own)


def test_only_support_devices_are_devices(observations: list[Observation]) -> None:
    sides: dict[str, set[str | None]] = {device: set() for device in DEVICES}
    for observation in observations:
        assert (observation.device is not None) == (observation.finding == "Support Devices")
        if observation.device:
            sides[observation.device].add(observation.side)
    sided = {"jugular catheter", "chest tube", "pacemaker"}
    assert sides == {device: ONE_SIDE if device in sided else {None} for device in DEVICES}


def test_observations_stand_in_the_order_of_findings_and_once_each(train: list[Study]) -> None:
    for study in train:
        names = [(FINDINGS.index(o.finding), DEVICES.index(o.device) if o.device else 0) for o in study.observations]
        assert names == sorted(set(names))


def test_both_projections_are_common(train: list[Study]) -> None:
    assert 0.35 < sum(study.view == "AP" for study in train) / len(train) < 0.65


def test_findings_of_one_disease_come_together(train: list[Study]) -> None:
    edema = [study for study in train if study.find("Edema")]
    enlarged = sum(bool(study.find("Cardiomegaly")) for study in train) / len(train)
    assert sum(bool(study.find("Cardiomegaly")) for study in edema) / len(edema) > 2 * enlarged


@pytest.mark.parametrize(
    ("strength", "severity", "is_certain"),
    [
        (0.02, "mild", False),
        (0.1599, "mild", False),
        (0.16, "mild", True),
        (0.4499, "mild", True),
        (0.45, "moderate", True),
        (0.7499, "moderate", True),
        (0.75, "severe", True),
        (1.0, "severe", True),
    ],
)
def test_strength_sets_grade_and_certainty(strength: float, severity: str, is_certain: bool) -> None:
    observation = Observation("Edema", strength, "bilateral")
    assert (observation.severity, observation.is_certain) == (severity, is_certain)
    assert Observation("Support Devices", strength, device="pacemaker").is_certain


def test_contrast_rises_from_a_fifth_to_one() -> None:
    contrasts = [Observation("Edema", strength).contrast for strength in (0.0, 0.25, 1.0)]
    assert contrasts == pytest.approx([0.2, 0.6, 1.0])


def test_sides_to_draw_on() -> None:
    assert Observation("Edema", 0.5, "bilateral").sides == ("left", "right")
    assert Observation("Fracture", 0.5, "right").sides == ("right",)
    assert Observation("Cardiomegaly", 0.5).sides == ()


def test_find_gives_all_observations_of_one_finding() -> None:
    tube = Observation("Support Devices", 0.5, device="endotracheal tube")
    pacemaker = Observation("Support Devices", 0.9, "left", device="pacemaker")
    edema = Observation("Edema", 0.5, "bilateral")
    study = Study("s", "p", "b", "AP", (edema, tube, pacemaker))
    assert study.find("Support Devices") == (tube, pacemaker)
    assert study.find("Edema") == (edema,)
    assert study.find("Fracture") == ()


def test_draws_never_change() -> None:
    draw = Draw("a name")
    assert [draw.uniform(), draw.uniform(-1, 1)] == pytest.approx([0.46996406166171023, 0.7641910461253234], abs=1e-12)
    assert [draw.index((0.2, 0.3, 0.5)) for _ in range(10)] == [2, 0, 0, 1, 1, 2, 2, 2, 2, 0]
    assert [draw.chance(0.5) for _ in range(8)] == [False, True, False, True, True, False, True, False]
    assert Draw("another name").uniform() != Draw("a name").uniform()


def test_indices_are_drawn_by_weight() -> None:
    draw = Draw("weights")
    counts = Counter(draw.index((1.0, 0.0, 3.0, 6.0)) for _ in range(20_000))
    shares = [counts[position] / 20_000 for position in range(4)]
    assert shares == pytest.approx([0.1, 0.0, 0.3, 0.6], abs=0.015)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=8), st.floats(-10, 10), st.floats(0.001, 10), st.lists(st.floats(0.001, 5), min_size=1))
def test_draws_stay_in_range(name: str, low: float, width: float, weights: list[float]) -> None:
    draw = Draw(name)
    assert low <= draw.uniform(low, low + width) <= low + width
    assert 0 <= draw.index(tuple(weights)) < len(weights)
    assert draw.chance(1.0)
    assert not draw.chance(0.0)
