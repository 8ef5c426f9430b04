"""Reports of the embedded corpus: a grammar in which every report has one derivation.

A report is a chain of choices: which statements to make and how to phrase each. What the radiograph shows must be
stated; what it does not show may be denied. Since no two chains give the same text, the probability of a report given
its findings is the product of its choices, and the perplexity that no model can beat is computed, not estimated.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS
from medvill_pl.synthetic import templates
from medvill_pl.synthetic.study import Draw, Observation, Study, variants

Choose = Callable[[Sequence[float]], int]
"""Picks a position in a list of probabilities."""

_CHEST = ("Support Devices", "Cardiomegaly", "Enlarged Cardiomediastinum")
_LUNGS = ("Edema", "Consolidation", "Pneumonia", "Lung Opacity", "Lung Lesion", "Atelectasis")
_PLEURA = ("Pleural Effusion", "Pneumothorax")


def _blanks(observation: Observation) -> dict[str, str]:
    """What a template's blanks stand for."""
    grade = ("mild", "moderate", "severe").index(observation.severity)
    many, both = observation.count > 1, observation.side == "bilateral"
    blanks = {blank: scale[grade] for blank, scale in templates.SCALES.items()}
    blanks |= {
        "side": observation.side or "",
        "zone": observation.zone or "",
        "lobe": templates.LOBES.get((observation.side or "", observation.zone or ""), ""),
        "count": ("one", "two", "three")[observation.count - 1],
        "nodule": "nodules" if many else "nodule",
        "fracture": "fractures" if many else "fracture",
        "rib": "ribs" if many else "rib",
        "effusion": "effusions" if both else "effusion",
        "base": "lung bases" if both else f"{observation.side} base",
        "diaphragm": "hemidiaphragms" if both else "hemidiaphragm",
        "is": "are" if many or both else "is",
        "is_a": "are" if both else "is a",
    }
    return blanks


def _fill(template: str, observation: Observation) -> str:
    sentence = template.format_map(_blanks(observation))
    return sentence[0].upper() + sentence[1:]


@dataclass
class ReportWriter:
    """Writes a report choice by choice.

    Who chooses is an argument: a random draw writes the report, and a test that tries all choices enumerates all
    reports of a study with their probabilities.

    Args:
        choose: picks a position in a list of probabilities.

    Attributes:
        sentences: what was written so far.
        denied: findings that were denied so far.

    Example:
        >>> writer = ReportWriter(choose=lambda probabilities: 0)  # always the first choice
        >>> writer.write(Study("s", "p", "b", "PA", (Observation("Edema", 0.9, "bilateral"),)))
        >>> writer.sentences[3:5]
        ['The mediastinum is not widened.', 'Severe pulmonary edema.']
    """

    choose: Choose
    sentences: list[str] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)

    def maybe(self, probability: float) -> bool:
        """Choose yes with a probability."""
        return self.choose((probability, 1 - probability)) == 0

    def say(self, choices: Sequence[str], observation: Observation | None = None) -> None:
        """Write one of some templates, each with the same probability; its blanks say what was observed."""
        template = choices[self.choose([1 / len(choices)] * len(choices))]
        self.sentences.append(_fill(template, observation) if observation else template)

    def deny(self, finding: str) -> None:
        """Perhaps deny a finding."""
        if self.maybe(templates.DENIAL_RATE[finding]):
            self.say(templates.NEGATIVE[finding])
            self.denied.add(finding)

    def state(self, finding: str, study: Study) -> None:
        """Say what the radiograph shows of one finding, or perhaps deny it."""
        for observation in study.find(finding):
            if observation.device:
                self.say(templates.DEVICE[observation.device], observation)
            else:
                self.say((templates.POSITIVE if observation.is_certain else templates.HEDGED)[finding], observation)
        if not study.find(finding):
            self.deny(finding)

    def write(self, study: Study) -> None:
        """Write all sections of a report."""
        for section in SECTIONS:
            section(self, study)


def _opening(writer: ReportWriter, study: Study) -> None:
    if writer.maybe(0.8):
        writer.say(templates.OPENING[study.view])


def _chest(writer: ReportWriter, study: Study) -> None:
    for finding in _CHEST:
        writer.state(finding, study)


def _lungs(writer: ReportWriter, study: Study) -> None:
    if not any(study.find(finding) for finding in _LUNGS) and writer.maybe(0.7):
        writer.say(templates.CLEAR)
    for finding in _LUNGS:
        writer.state(finding, study)


def _pleura(writer: ReportWriter, study: Study) -> None:
    if not any(study.find(finding) for finding in _PLEURA) and writer.maybe(0.4):
        writer.say(templates.DENIED_TOGETHER)
        writer.denied.update(_PLEURA)
    else:
        for finding in _PLEURA:
            writer.state(finding, study)
    writer.state("Pleural Other", study)


def _bones(writer: ReportWriter, study: Study) -> None:
    writer.state("Fracture", study)


def _closing(writer: ReportWriter, study: Study) -> None:
    if _is_normal(study) and writer.maybe(0.6):
        writer.say(templates.CLOSING)


SECTIONS = (_opening, _chest, _lungs, _pleura, _bones, _closing)
"""The parts of a report, in order; each makes its choices alone."""


def _is_normal(study: Study) -> bool:
    return not any(observation.finding != "Support Devices" for observation in study.observations)


@dataclass(frozen=True)
class Report:
    """A report and what is known of it.

    Attributes:
        text: the report.
        labels: the 14 findings as the text states them: 1, 0, -1 (uncertain), NaN (not mentioned), float32,
            shape ``(14,)``.
        log_probability: natural logarithm of p(text | what the radiograph shows).

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> report = write_report(next(studies("train")))
        >>> report.text[:53], round(report.log_probability, 2)
        ('PA projection in full inspiration. Heart size is norm', -11.6)
    """

    text: str
    labels: NDArray[np.float32]
    log_probability: float


def write_report(study: Study) -> Report:
    """Write the report of a study; the same study always gets the same report.

    Args:
        study: what the radiograph shows; the choices of words follow from its ``id``.

    Example:
        >>> study = Study("s", "p", "b", "AP", (Observation("Pneumothorax", 0.9, "left"),))
        >>> "left" in write_report(study).text
        True
    """
    return _write(study, Draw(f"report/{study.id}"))


def rewrite_report(study: Study) -> Report:
    """Write another report of the same study, as a second reader would: equal findings, other choices.

    Args:
        study: what the radiograph shows; the choices of words follow from its ``id``.

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> study = next(studies("train"))
        >>> rewrite_report(study).text != write_report(study).text
        True
    """
    return _write(study, Draw(f"second report/{study.id}"))


def _write(study: Study, draw: Draw) -> Report:
    log_probability = 0.0

    def choose(probabilities: Sequence[float]) -> int:
        nonlocal log_probability
        choice = draw.index(tuple(probabilities))
        log_probability += math.log(probabilities[choice])
        return choice

    writer = ReportWriter(choose)
    writer.write(study)
    return Report(" ".join(writer.sentences), _labels(study, writer.denied), log_probability)


def _labels(study: Study, denied: set[str]) -> NDArray[np.float32]:
    labels = np.full(len(FINDINGS), np.nan, dtype=np.float32)
    for finding in denied:
        labels[FINDINGS.index(finding)] = 0
    for observation in study.observations:
        labels[FINDINGS.index(observation.finding)] = 1 if observation.is_certain else -1
    if _is_normal(study):
        labels[FINDINGS.index("No Finding")] = 1
    return labels


def perplexity_floor(reports: Iterable[Report], num_tokens: int) -> float:
    """The perplexity that a model reaches which knows the grammar and sees every radiograph perfectly.

    Args:
        reports: the reports to be predicted.
        num_tokens: their tokens together, counting the closing SEP of each.

    Returns:
        ``exp(-sum of log p(report | its findings) / tokens)``.

    Example:
        >>> report = Report("Two tokens", np.zeros(14, dtype=np.float32), log_probability=-3 * math.log(2))
        >>> round(perplexity_floor([report], num_tokens=3), 6)
        2.0
    """
    return math.exp(-sum(report.log_probability for report in reports) / num_tokens)


def sentences() -> list[str]:
    """Every sentence that the grammar can produce, without repetition.

    Example:
        >>> "Normal chest radiograph." in sentences()
        True
    """
    texts = [*templates.CLOSING, *templates.CLEAR, *templates.DENIED_TOGETHER]
    for group in (templates.OPENING, templates.NEGATIVE):
        texts += [sentence for choices in group.values() for sentence in choices]
    for finding, choices in [*templates.POSITIVE.items(), *templates.HEDGED.items(), *templates.DEVICE.items()]:
        texts += [_fill(template, observation) for observation in variants(finding) for template in choices]
    return list(dict.fromkeys(texts))
