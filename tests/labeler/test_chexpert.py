"""Tests of the labeler on sentences written for them: states, aggregation, No Finding, evidence."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl import FINDINGS, CheXpertLabeler, Labeler
from medvill_pl.labeler.chexpert import Evidence, combine

FAITHFUL, CORRECT = CheXpertLabeler(), CheXpertLabeler(imitate_faults=False)

# What each finding is called in a sentence that can be affirmed, denied and doubted.
NAMES = {
    "Lung Lesion": ("pulmonary nodule", "cavitating lesion", "lung tumour", "right upper lobe mass"),
    "Lung Opacity": ("patchy airspace opacity", "air-space disease", "basal infiltrate", "reticular pattern"),
    "Edema": ("interstitial edema", "pulmonary oedema"),
    "Consolidation": ("lobar consolidation", "dense consolidation"),
    "Pneumonia": ("right lower lobe pneumonia", "acute infection"),
    "Atelectasis": ("discoid atelectasis", "lobar collapse"),
    "Pneumothorax": ("apical pneumothorax", "left hydropneumothorax"),
    "Pleural Effusion": ("left effusion", "layering pleural fluid"),
    "Pleural Other": ("apical pleural thickening", "pulmonary fibrosis"),
    "Fracture": ("clavicle fracture",),
    "Support Devices": ("central venous catheter", "chest tube"),
}
FRAMES = {
    1: ("There is a {}.", "Again seen is a {} on the left.", "Improving {} since the last film."),
    0: ("There is no {}.", "Lungs without {}.", "No evidence of {} is seen.", "The {} has resolved."),
    -1: ("This may be a {}.", "Suspected {}.", "A {} cannot be excluded.", "Findings concerning for {}."),
}
FRAMED = [
    (frame.format(name), finding, state)
    for finding, names in NAMES.items()
    for name in names
    for state, frames in FRAMES.items()
    for frame in frames
]
WRITTEN = [
    # size and shape
    ("The heart is normal in size.", "Cardiomegaly", 0),
    ("Cardiac silhouette is not enlarged.", "Cardiomegaly", 0),
    ("The heart is not significantly enlarged.", "Cardiomegaly", 0),
    ("Heart size is within normal limits for a supine film.", "Cardiomegaly", 0),
    ("Mild cardiomegaly.", "Cardiomegaly", 1),
    ("The heart is enlarged and the lungs are clear.", "Cardiomegaly", 1),
    ("The heart is enlarged with normal vessels.", "Cardiomegaly", 1),
    ("Pulmonary vessels are normal and the heart is enlarged.", "Cardiomegaly", 1),
    ("Mildly enlarged cardiac silhouette, normal vessels.", "Cardiomegaly", 1),
    ("Enlarged heart with normal vessels.", "Cardiomegaly", 1),
    ("Mediastinal contours are widened, normal hila.", "Enlarged Cardiomediastinum", 1),
    ("Stable enlarged cardiac silhouette.", "Cardiomegaly", -1),
    ("There is stable enlargement of the heart.", "Cardiomegaly", 1),
    ("Heart size at upper limits of normal.", "Cardiomegaly", 0),
    ("Heart size is upper limits of normal today.", "Cardiomegaly", 1),
    ("Borderline heart size.", "Cardiomegaly", -1),
    ("Stable heart size.", "Cardiomegaly", -1),
    ("Cardiomegaly is possible.", "Cardiomegaly", -1),
    ("No cardiomegaly.", "Cardiomegaly", 0),
    ("Lungs are hazy.", "Cardiomegaly", None),
    ("The mediastinal contours are normal in appearance.", "Enlarged Cardiomediastinum", 0),
    ("Normal cardiomediastinal silhouette.", "Enlarged Cardiomediastinum", 0),
    ("The mediastinum is widened.", "Enlarged Cardiomediastinum", 1),
    ("Cardiomediastinal silhouette is stable and within normal limits.", "Enlarged Cardiomediastinum", -1),
    ("Unchanged mediastinal contours.", "Enlarged Cardiomediastinum", -1),
    ("Stable cardiomediastinal silhouette with normal heart size.", "Cardiomegaly", 0),
    ("Mediastinum is widened.", "Enlarged Cardiomediastinum", None),  # as the original
    # the reach of a denial
    ("No effusion, pneumothorax, or focal consolidation.", "Consolidation", 0),
    ("No effusion but a small pneumothorax.", "Pneumothorax", 1),
    ("No effusion but a small pneumothorax.", "Pleural Effusion", 0),
    ("No effusion, and there is a small pneumothorax.", "Pneumothorax", 1),
    ("No significant change in the left effusion.", "Pleural Effusion", 1),
    ("Clear of focal airspace disease.", "Lung Opacity", 0),
    ("Negative for pneumothorax on the right.", "Pneumothorax", 0),
    ("The picc line has been removed.", "Support Devices", 0),
    # doubt
    ("Atelectasis or scarring at the left base.", "Atelectasis", -1),
    ("Atelectasis or scarring at the left base.", "Lung Opacity", -1),
    ("Basal atelectasis/infiltrate.", "Atelectasis", -1),
    ("Venous catheter or drain on the left.", "Support Devices", 1),
    ("Right or left lower lobe opacity.", "Lung Opacity", 1),
    ("Status s/p fall, r/o ptx today.", "Pneumothorax", -1),
    ("Likely atelectasis.", "Atelectasis", -1),
    ("Film of the chest w/o edema.", "Edema", 0),
    ("Film for ?pneumonia.", "Pneumonia", -1),
    ("Pneumonia or edema?", "Edema", -1),
    ("No edema, and pneumonia cannot be ruled out.", "Pneumonia", -1),
    ("Question small effusion.", "Pleural Effusion", -1),
    ("Mild vascular congestion.", "Edema", -1),
    ("No vascular congestion.", "Edema", 0),
    ("Congestive heart failure.", "Edema", 1),
    ("Congestive heart failure.", "Cardiomegaly", -1),
    ("No heart failure.", "Cardiomegaly", None),
    # phrases that hold another
    ("Small pericardial effusion.", "Pleural Effusion", None),
    ("Calcified nodule in the left lung.", "Lung Lesion", None),
    ("Left apical pleural scarring.", "Lung Opacity", None),
    ("Left apical pleural scarring.", "Pleural Other", 1),
    ("Opacity in the midclavicular line.", "Support Devices", None),
    # form of the text
    ("NO PNEUMOTHORAX IS SEEN TODAY.", "Pneumothorax", 0),
    ("No XXXX of pneumothorax is seen.", "Pneumothorax", 0),
    ("No ___ effusion is seen.", "Pleural Effusion", 0),
    ("There is a small\nleft pleural\neffusion on this film.", "Pleural Effusion", 1),
    ("No focal airspace-disease today.", "Lung Opacity", 0),
    ("FINDINGS: Two views.\nIMPRESSION:\n1. Left pneumothorax.\n2. No effusion today.", "Pneumothorax", 1),
]


def state_of(labeler: Labeler, text: str, finding: str) -> int | None:
    state = labeler([text])[0, FINDINGS.index(finding)]
    return None if np.isnan(state) else int(state)


@pytest.mark.parametrize(("text", "finding", "state"), FRAMED + WRITTEN)
def test_sentence_gives_its_state(text: str, finding: str, state: int | None) -> None:
    assert state_of(CORRECT, text, finding) == state
    assert state_of(FAITHFUL, f"{text} The patient is rotated.", finding) == state


@pytest.mark.parametrize(
    ("states", "combined"),
    [((1, 0), 1), ((0, -1), -1), ((1, -1), 1), ((1, 0, -1), -1), ((0, 0), 0), ((-1,), -1)],
)
def test_states_are_combined_as_the_original_does(states: tuple[int, ...], combined: int) -> None:
    evidence = [Evidence("Edema", state, "edema", "", "") for state in states]
    assert combine(evidence)["Edema"] == combined


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", 1),
        ("The lungs are clear.", 1),
        ("No pneumothorax. Right chest tube in place.", 1),
        ("No effusion today. Mild thoracic scoliosis.", None),
        ("Calcified granuloma in the left lung.", None),
        ("No calcified granuloma was seen today.", 1),
        ("Possible pneumonia.", None),
        ("Small effusion.", None),
    ],
)
def test_no_finding_is_positive_or_blank(text: str, state: int | None) -> None:
    assert state_of(CORRECT, text, "No Finding") == state


def test_labels_have_the_documented_form() -> None:
    labels = FAITHFUL(["Small effusion.", ""])
    assert labels.shape == (2, 14)
    assert labels.dtype == np.float32
    assert np.isnan(labels[1, 1:]).all()
    assert FAITHFUL([]).shape == (0, 14)


def test_evidence_names_phrase_sentence_and_rule() -> None:
    evidence = FAITHFUL.explain("No left effusion. Lungs may show early edema today. Chest tube.")
    assert evidence == [
        Evidence("Pleural Effusion", 0, "effusion", "No left effusion.", "denied before: no"),
        Evidence("Edema", -1, "edema", "Lungs may show early edema today.", "doubted before: may"),
        Evidence("Support Devices", 1, "tube", "Chest tube.", "affirmed"),
    ]
    assert FAITHFUL.explain("Clear lungs.")[-1].finding == "No Finding"
    assert FAITHFUL.explain("Mild scoliosis.")[0].finding == "Other"


@pytest.mark.parametrize(
    ("texts", "message"), [("one text", "not one string"), (["a", None], "text 1 must be a string")]
)
def test_what_is_no_text_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAITHFUL(texts)


def test_labeler_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(FAITHFUL))
    np.testing.assert_array_equal(copy(["Small effusion."]), FAITHFUL(["Small effusion."]))


def test_long_text_is_read_in_time_that_grows_with_it() -> None:
    text = "left effusion or edema without fracture " * 5000
    assert state_of(FAITHFUL, text, "Fracture") == 0


WORDS = [
    "no",
    "small",
    "effusion",
    "or",
    "may",
    "edema",
    "heart size",
    "normal",
    "XXXX",
    "stable",
    ".",
    "\n",
    "?",
    "1.",
]
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_any_text_is_labelled_alone_as_in_a_batch(texts: list[str]) -> None:
    labels = FAITHFUL(texts)
    assert (np.isnan(labels) | np.isin(labels, (-1, 0, 1))).all()
    for text, row in zip(texts, labels, strict=True):
        np.testing.assert_array_equal(FAITHFUL([text])[0], row)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_a_sentence_on_something_else_changes_no_other_finding(text: str) -> None:
    without, with_it = FAITHFUL([text, f"The patient is rotated.\n\n{text}"])
    np.testing.assert_array_equal(without, with_it)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_evidence_gives_the_labels(text: str) -> None:
    combined = combine([piece for piece in FAITHFUL.explain(text) if piece.finding != "No Finding"])
    states = [combined.get(finding, np.nan) for finding in FINDINGS]
    np.testing.assert_array_equal(FAITHFUL([text])[0], states)
