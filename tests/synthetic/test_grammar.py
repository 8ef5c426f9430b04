"""The reports' grammar: pinned, unambiguous, with known probabilities, and true to the labels."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from itertools import islice, product

import numpy as np
import pytest
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS, Split
from medvill_pl.synthetic.grammar import SECTIONS, Report, ReportWriter, perplexity_floor, sentences, write_report
from medvill_pl.synthetic.questions import ask
from medvill_pl.synthetic.study import DEVICES, Observation, Study, studies
from medvill_pl.tokenizer import ReportTokenizer

Section = Callable[[ReportWriter, Study], None]
Derivation = tuple[str, float]
Enumerated = list[tuple[Study, list[list[Derivation]]]]

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Which findings each section speaks of, in the order of SECTIONS.
SPOKEN_OF = (
    (),
    ("Support Devices", "Cardiomegaly", "Enlarged Cardiomediastinum"),
    ("Edema", "Consolidation", "Pneumonia", "Lung Opacity", "Lung Lesion", "Atelectasis"),
    ("Pleural Effusion", "Pneumothorax", "Pleural Other"),
    ("Fracture",),
    (),
)
# Words that a sentence about a finding has, and no other sentence.
MENTIONS = {
    "Enlarged Cardiomediastinum": r"mediastin|cardiomediastin",
    "Cardiomegaly": r"\bheart\b|cardiomegaly",
    "Lung Lesion": r"\bnodules?\b",
    "Lung Opacity": r"\bopacity\b|opacification|infiltrate",
    "Edema": r"\bedema\b",
    "Consolidation": r"\bconsolidation\b",
    "Pneumonia": r"\b(broncho)?pneumonia\b",
    "Atelectasis": r"\batelectasis\b",
    "Pneumothorax": r"\bpneumothorax\b",
    "Pleural Effusion": r"\beffusions?\b|\bpleural fluid\b",
    "Pleural Other": r"\bpleural thickening\b",
    "Fracture": r"\bfractures?\b",
    "Support Devices": r"\btubes?\b|catheter|pacemaker|hardware|\bdrain\b",
}
HEDGE = r"\b(possible|questionable|cannot be excluded)\b"
DENIAL = r"\b(no|not|neither|absent|within normal limits|unremarkable|size is normal)\b"


def take(split: Split, number: int) -> list[Study]:
    return list(islice(studies(split), number))


def study_of(*observations: Observation, view: str = "AP") -> Study:
    return Study("a-study", "a-patient", "a-patient", view, observations)  # type: ignore[arg-type]


def split_sentences(text: str) -> list[str]:
    return re.findall(r"[^.]+\.", text.replace(". ", "."))


def _replay(section: Section, study: Study, prefix: tuple[int, ...]) -> tuple[str, list[Sequence[float]]]:
    """Write a section by the choices of ``prefix`` and then always the first; return the choices there were."""
    met: list[Sequence[float]] = []

    def choose(probabilities: Sequence[float]) -> int:
        met.append(probabilities)
        return prefix[len(met) - 1] if len(met) <= len(prefix) else 0

    writer = ReportWriter(choose)
    section(writer, study)
    return " ".join(writer.sentences), met


def derivations(section: Section, study: Study) -> Iterator[Derivation]:
    """Text and probability of every chain of choices, depth first."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        prefix = pending.pop()
        text, met = _replay(section, study, prefix)
        choices = prefix + (0,) * (len(met) - len(prefix))
        for position in range(len(prefix), len(met)):
            pending += [(*choices[:position], other) for other in range(1, len(met[position]))]
        yield text, math.prod(probabilities[choice] for probabilities, choice in zip(met, choices, strict=True))


def every_observation(finding: str, strength: float) -> list[Observation]:
    """All that a radiograph can show of one finding."""
    one_side, zones = ("left", "right"), ("upper", "mid", "lower")
    if finding in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
        return [Observation(finding, strength)]
    if finding == "Support Devices":
        sided = ("jugular catheter", "chest tube", "pacemaker")
        return [
            Observation(finding, strength, side, device=device)
            for device in DEVICES
            for side in (one_side if device in sided else (None,))
        ]
    sides = {"Edema": ("bilateral",), "Atelectasis": (*one_side, "bilateral")}
    sides["Pleural Effusion"] = sides["Atelectasis"]
    is_zoned = finding in ("Lung Lesion", "Lung Opacity", "Consolidation", "Pneumonia")
    counts = (1, 2, 3) if finding in ("Lung Lesion", "Fracture") else (1,)
    return [
        Observation(finding, strength, side, zone, count)  # type: ignore[arg-type]
        for side, zone, count in product(sides.get(finding, one_side), zones if is_zoned else (None,), counts)
    ]


def stated(finding: str, observation: Observation) -> list[str]:
    """The sentences that may state one observation."""
    return [text for text, _ in derivations(lambda writer, study: writer.state(finding, study), study_of(observation))]


def labels_of(text: str) -> dict[str, float]:
    """What a reader who knows nothing of the image takes from the text."""
    labels: dict[str, float] = {}
    for sentence in split_sentences(text.lower()):
        value = -1 if re.search(HEDGE, sentence) else 0 if re.search(DENIAL, sentence) else 1
        labels |= {finding: value for finding, words in MENTIONS.items() if re.search(words, sentence)}
    if not any(value for finding, value in labels.items() if finding != "Support Devices"):
        labels["No Finding"] = 1
    return labels


@pytest.fixture(scope="module")
def train() -> list[Study]:
    return take("train", 3000)


@pytest.fixture(scope="module")
def reports(train: list[Study]) -> list[Report]:
    return [write_report(study) for study in train]


@pytest.fixture(scope="module")
def enumerated() -> Enumerated:
    """Studies of the corpus and extreme ones, each with all derivations of its sections."""
    everything = [
        study_of(*(every_observation(finding, strength)[-1] for finding in FINDINGS[1:])) for strength in (0.1, 0.5)
    ]
    devices = study_of(*every_observation("Support Devices", 0.5)[::2], view="PA")
    chosen = [study_of(), study_of(view="PA"), devices, *everything, *take("test", 40)]
    return [(study, [list(derivations(section, study)) for section in SECTIONS]) for study in chosen]


@pytest.fixture(scope="module")
def sentences_of_sections(
    enumerated: Enumerated,
) -> list[set[str]]:
    """All sentences that each section can produce."""
    sections_sentences: list[set[str]] = [set() for _ in SECTIONS]
    for _, sections in enumerated:
        for index, derived in enumerate(sections):
            sections_sentences[index].update(sentence for text, _ in derived for sentence in split_sentences(text))
    for index, findings in enumerate(SPOKEN_OF):
        for finding, strength in product(findings, (0.1, 0.3, 0.6, 0.9)):
            for observation in every_observation(finding, strength):
                sections_sentences[index].update(stated(finding, observation))
    return sections_sentences


def test_a_version_of_the_texts_never_changes(reports: list[Report]) -> None:
    text = "\n".join(report.text for report in reports[:500])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "97accf85a374b386"


def test_two_reports_read_as_pinned(reports: list[Report]) -> None:
    assert reports[0].text == (
        "PA projection in full inspiration. Heart size is normal. There is subtle consolidation with air bronchograms "
        "in the left mid lung. Extensive patchy pneumonia in the right lower lung. Neither effusion nor pneumothorax "
        "is demonstrated. No displaced rib fracture."
    )
    assert reports[3].text == (
        "Portable AP view of the chest. The lungs are clear. No pulmonary edema. No focal consolidation. No pleural "
        "effusion. Pneumothorax is absent. No evidence of active disease."
    )


def test_the_draw_of_a_report_follows_from_the_id_alone(train: list[Study]) -> None:
    study = next(study for study in train if len(study.observations) == 2)
    assert write_report(study).text == write_report(study).text
    renamed = {write_report(replace(study, id=f"{study.id}-{number}")).text for number in range(20)}
    assert len(renamed) > 10


# -- unambiguous --------------------------------------------------------------------------------


def test_no_two_derivations_of_a_section_give_one_text(
    enumerated: Enumerated,
) -> None:
    for study, sections in enumerated:
        for derived in sections:
            assert len({text for text, _ in derived}) == len(derived), study
    assert max(len(sections[2]) for _, sections in enumerated) > 2000  # the fixture holds the richest section


def test_probabilities_of_a_section_sum_to_one(
    enumerated: Enumerated,
) -> None:
    for _, sections in enumerated:
        for derived in sections:
            assert math.fsum(probability for _, probability in derived) == pytest.approx(1, abs=1e-9)


def test_sections_share_no_sentence(sentences_of_sections: list[set[str]]) -> None:
    assert sum(map(len, sentences_of_sections)) == len(set.union(*sentences_of_sections))
    assert all(sentences_of_sections)


def test_a_report_falls_into_sentences_in_one_way(sentences_of_sections: list[set[str]]) -> None:
    for sentence in set.union(*sentences_of_sections):
        assert sentence.endswith(".")
        assert sentence.count(".") == 1


def test_log_probability_is_the_sum_over_the_sections(
    enumerated: Enumerated, sentences_of_sections: list[set[str]]
) -> None:
    for study, sections in enumerated:
        report = write_report(study)
        expected = 0.0
        written = split_sentences(report.text)
        for own, derived in zip(sentences_of_sections, sections, strict=True):
            expected += math.log(dict(derived)[" ".join(sentence for sentence in written if sentence in own)])
        assert report.log_probability == pytest.approx(expected, abs=1e-9)


def test_reports_are_drawn_with_the_probabilities_they_state(
    enumerated: Enumerated,
) -> None:
    surprise, entropy, variance = 0.0, 0.0, 0.0
    for study, sections in enumerated:
        for derived in sections:
            probability = np.array([p for _, p in derived])
            information = -np.log(probability)
            mean = float(probability @ information)
            entropy += 20 * mean
            variance += 20 * float(probability @ (information - mean) ** 2)
        for number in range(20):
            surprise -= write_report(replace(study, id=f"{study.id}-{number}")).log_probability
    assert abs(surprise - entropy) < 3.5 * math.sqrt(variance)


def test_sentences_lists_what_can_be_produced_and_nothing_else(sentences_of_sections: list[set[str]]) -> None:
    listed, produced = sentences(), set.union(*sentences_of_sections)
    assert len(listed) == len(set(listed))
    assert produced - set(listed) == set()
    assert set(listed) - produced == set()


# -- true to the image --------------------------------------------------------------------------


def test_labels_are_what_a_reader_takes_from_the_text(reports: list[Report]) -> None:
    for report in reports:
        read = labels_of(report.text)
        expected = np.array([read.get(finding, np.nan) for finding in FINDINGS], dtype=np.float32)
        np.testing.assert_array_equal(report.labels, expected, report.text)


def test_what_the_image_shows_is_stated_and_never_denied(train: list[Study], reports: list[Report]) -> None:
    for study, report in zip(train, reports, strict=True):
        for column, finding in enumerate(FINDINGS[1:], start=1):
            observed = study.find(finding)
            if observed:
                assert report.labels[column] == (1 if observed[0].is_certain else -1)
            else:
                assert report.labels[column] not in (1, -1)


@pytest.mark.parametrize("finding", FINDINGS)
def test_states_of_a_label(reports: list[Report], finding: str) -> None:
    values: NDArray[np.float32] = np.stack([report.labels for report in reports])[:, FINDINGS.index(finding)]
    states = {"No Finding": {1.0, None}, "Support Devices": {1.0, 0.0, None}}
    seen = {None if math.isnan(value) else value for value in values.tolist()}
    assert seen == states.get(finding, {1.0, 0.0, -1.0, None})
    assert values.dtype == np.float32


def test_a_quarter_of_the_corpus_has_no_finding(reports: list[Report]) -> None:
    assert 0.2 < sum(report.labels[0] == 1 for report in reports) / len(reports) < 0.35


@pytest.mark.parametrize("finding", FINDINGS[1:])
def test_a_sentence_tells_side_zone_count_and_grade(finding: str) -> None:
    seen: dict[str, tuple[object, ...]] = {}
    strengths = (0.5,) if finding == "Support Devices" else (0.3, 0.6, 0.9)
    for strength in strengths:
        for observation in every_observation(finding, strength):
            for sentence in stated(finding, observation):
                said = (observation.severity, observation.side, observation.zone, observation.count, observation.device)
                assert seen.setdefault(sentence, said) == said
    assert len(seen) > 3 * len(strengths)


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (
            Observation("Fracture", 0.9, "left", count=2),
            {
                "Two grossly displaced left rib fractures.",
                "There are two grossly displaced fractures of the left ribs.",
                "Grossly displaced fractures involving two left ribs.",
                "Left rib fractures, two in total, grossly displaced.",
            },
        ),
        (
            Observation("Pleural Effusion", 0.2, "bilateral"),
            {
                "Small bilateral pleural effusions.",
                "There are small bilateral pleural effusions with a meniscus.",
                "Small amount of pleural fluid, bilateral.",
                "Layering small bilateral effusions.",
            },
        ),
        (
            Observation("Lung Lesion", 0.1, "left", "mid"),
            {
                "Possible subtle nodule in the left mid lung.",
                "Questionable nodule over the lingula.",
                "A left mid nodule cannot be excluded.",
            },
        ),
        (
            Observation("Support Devices", 0.5, "right", device="chest tube"),
            {
                "A right chest tube is in place.",
                "Right thoracostomy tube is well positioned.",
                "Pleural drain enters the right hemithorax.",
            },
        ),
    ],
)
def test_blanks_are_filled_in(observation: Observation, expected: set[str]) -> None:
    assert set(stated(observation.finding, observation)) == expected


# -- words and perplexity -----------------------------------------------------------------------


def test_the_tokenizer_knows_every_word_and_uses_250() -> None:
    tokenizer = ReportTokenizer.load("synthetic")
    encoded = tokenizer.encode([write_report(study).text for study in take("test", 2000)])
    used = {token for ids in encoded for token in ids}
    assert tokenizer.unk_id not in used
    assert len(used) >= 250
    assert max(map(len, encoded)) <= 120
    assert not any(token.startswith("##") for token in tokenizer.tokens(sorted(used)))


def test_vocab_txt_holds_the_words_of_reports_and_questions(train: list[Study]) -> None:
    texts = [*sentences(), *(f"{q.question} {q.answer}" for study in train for q in ask(study))]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    vocab = resources.files("medvill_pl").joinpath("synthetic", "vocab.txt").read_text(encoding="utf-8")
    assert vocab == "".join(f"{token}\n" for token in [*SPECIALS, *sorted(words)])


def test_perplexity_floor_by_hand() -> None:
    labels = np.zeros(14, dtype=np.float32)
    reports = [Report("a.", labels, math.log(0.5)), Report("b.", labels, math.log(0.125))]
    # Two reports of 2 tokens and a SEP: the sixth root of 1 / (0.5 * 0.125).
    assert perplexity_floor(reports, 6) == pytest.approx(16 ** (1 / 6))
    assert perplexity_floor(iter(reports), 2) == pytest.approx(4.0)


def test_perplexity_floor_of_the_test_split() -> None:
    reports = [write_report(study) for study in take("test", 400)]
    encoded = ReportTokenizer.load("synthetic").encode([report.text for report in reports])
    floor = perplexity_floor(reports, sum(len(ids) + 1 for ids in encoded))
    assert 1.2 < floor < 1.7
    bits = sum(-report.log_probability for report in reports) / math.log(2)
    assert floor == pytest.approx(2 ** (bits / sum(len(ids) + 1 for ids in encoded)))
