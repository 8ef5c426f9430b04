"""Reports of the embedded corpus: a grammar in which every report has one derivation.

A report is a chain of choices: which statements to make and how to phrase each. What the film shows
must be stated; what it does not show may be denied. Since no two chains give the same text, the
probability of a report given its findings is the product of its choices, and the perplexity that
no model can beat is computed, not estimated.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medvill_pl.batch import FINDINGS
from medvill_pl.synthetic.study import Draw, Observation, Study, variants

Choose = Callable[[Sequence[float]], int]
"""Picks a place in a list of probabilities."""

_OPENING = {
    "AP": (
        "Portable AP view of the chest.",
        "Supine AP chest radiograph.",
        "Single anteroposterior film obtained at the bedside.",
        "AP projection, semi-erect position.",
    ),
    "PA": (
        "PA view of the chest.",
        "Upright PA chest radiograph.",
        "Single posteroanterior film obtained standing.",
        "PA projection in full inspiration.",
    ),
}
_CLOSING = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No evidence of active disease.",
    "Unremarkable examination.",
)
_CLEAR = (
    "The lungs are clear.",
    "Both lungs are well expanded and clear.",
    "Lungs are well aerated bilaterally.",
    "Clear lungs without abnormal shadows.",
)

_POSITIVE = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is {adverb} widened.",
        "There is {severity} widening of the superior mediastinum.",
        "{severity} mediastinal enlargement.",
        "Upper mediastinum appears {adverb} broadened.",
    ),
    "Cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "There is {severity} cardiomegaly.",
        "{severity} enlargement of the heart.",
        "Heart size is {adverb} increased.",
        "{severity} cardiomegaly is noted.",
    ),
    "Lung Lesion": (
        "{count} {size} {nodule} in the {side} {zone} lung.",
        "{count} {nodule} of {size} size projecting over the {lobe}.",
        "There {is} {count} {size} round {nodule} within the {lobe}.",
        "{side} {zone} zone contains {count} well-defined {size} {nodule}.",
    ),
    "Lung Opacity": (
        "{grade} hazy opacity in the {side} {zone} lung zone.",
        "Ill-defined {grade} opacity overlies the {lobe}.",
        "There is a {grade} infiltrate in the {side} {zone} lung.",
        "{grade} hazy opacification of the {lobe}.",
    ),
    "Edema": (
        "{severity} pulmonary edema.",
        "There is {severity} interstitial edema with perihilar haze.",
        "{severity} alveolar edema with peripheral septal thickening.",
        "Findings of {severity} edema in both lungs.",
    ),
    "Consolidation": (
        "{density} consolidation of the {lobe}.",
        "There is {density} consolidation with air bronchograms in the {side} {zone} lung.",
        "{density} {side} {zone} consolidation bordered by a fissure.",
        "The {lobe} shows {density} homogeneous consolidation.",
    ),
    "Pneumonia": (
        "{extent} patchy pneumonia in the {side} {zone} lung.",
        "There is {extent} bronchopneumonia in the {lobe}.",
        "{extent} {side} {zone} pneumonia.",
        "The {lobe} shows {extent} multifocal pneumonia.",
    ),
    "Atelectasis": (
        "{grade} {side} basilar atelectasis.",
        "{grade} linear atelectasis at the {base}.",
        "There is {grade} bandlike atelectasis just above the {side} {diaphragm}.",
        "{grade} {side} subsegmental atelectasis in the lower lobes.",
    ),
    "Pneumothorax": (
        "{size} {side} pneumothorax.",
        "There is a {size} {side} apical pneumothorax.",
        "{size} pneumothorax on the {side} with a visible visceral pleura.",
        "A {size} pneumothorax is seen along the {side} chest wall.",
    ),
    "Pleural Effusion": (
        "{size} {side} pleural {effusion}.",
        "There {is_a} {size} {side} pleural {effusion} with a meniscus.",
        "{size} amount of pleural fluid, {side}.",
        "Layering {size} {side} {effusion}.",
    ),
    "Pleural Other": (
        "{grade} {side} pleural thickening.",
        "There is {grade} pleural thickening along the lateral {side} hemithorax.",
        "{grade} chronic pleural thickening, {side}.",
        "{side} pleural thickening of {grade} degree with plaques.",
    ),
    "Fracture": (
        "{count} {displaced} {side} rib {fracture}.",
        "There {is} {count} {displaced} {fracture} of the {side} ribs.",
        "{displaced} {fracture} involving {count} {side} {rib}.",
        "{side} rib {fracture}, {count} in total, {displaced}.",
    ),
}

_HEDGED = {
    "Enlarged Cardiomediastinum": (
        "Possible slight widening of the mediastinum.",
        "Questionable mediastinal enlargement.",
        "Widening of the mediastinum cannot be excluded.",
    ),
    "Cardiomegaly": (
        "Possible borderline cardiomegaly.",
        "Questionable enlargement of the heart.",
        "Cardiomegaly cannot be excluded.",
    ),
    "Lung Lesion": (
        "Possible subtle {nodule} in the {side} {zone} lung.",
        "Questionable {nodule} over the {lobe}.",
        "A {side} {zone} nodule cannot be excluded.",
    ),
    "Lung Opacity": (
        "Possible faint opacity in the {side} {zone} lung.",
        "Questionable infiltrate in the {lobe}.",
        "A {side} {zone} opacity cannot be excluded.",
    ),
    "Edema": (
        "Possible early pulmonary edema.",
        "Questionable interstitial edema.",
        "Incipient edema cannot be excluded.",
    ),
    "Consolidation": (
        "Possible developing consolidation of the {lobe}.",
        "Questionable {side} {zone} consolidation.",
        "Consolidation in the {side} {zone} lung cannot be excluded.",
    ),
    "Pneumonia": (
        "Possible early pneumonia in the {side} {zone} lung.",
        "Questionable {lobe} pneumonia.",
        "{side} {zone} pneumonia cannot be excluded.",
    ),
    "Atelectasis": (
        "Possible trace {side} basilar atelectasis.",
        "Questionable atelectasis at the {base}.",
        "{side} atelectasis cannot be excluded.",
    ),
    "Pneumothorax": (
        "Possible tiny {side} pneumothorax.",
        "Questionable {side} apical pneumothorax.",
        "A {side} pneumothorax cannot be excluded.",
    ),
    "Pleural Effusion": (
        "Possible trace {side} pleural {effusion}.",
        "Questionable {side} pleural fluid.",
        "{side} {effusion} cannot be excluded.",
    ),
    "Pleural Other": (
        "Possible slight {side} pleural thickening.",
        "Questionable pleural thickening on the {side}.",
        "{side} pleural thickening cannot be excluded.",
    ),
    "Fracture": (
        "Possible nondisplaced {side} rib {fracture}.",
        "Questionable {side} rib {fracture}.",
        "{side} rib {fracture} cannot be excluded.",
    ),
}

_DEVICE = {
    "endotracheal tube": (
        "An endotracheal tube is in place.",
        "Endotracheal tube terminates above the carina.",
        "The tip of the endotracheal tube lies in the trachea.",
    ),
    "nasogastric tube": (
        "A nasogastric tube courses below the diaphragm.",
        "Nasogastric tube ends in the stomach.",
        "Enteric feeding tube in expected position.",
    ),
    "jugular catheter": (
        "A {side} jugular central venous catheter is present.",
        "{side} internal jugular catheter with its tip in the vena cava.",
        "Central catheter inserted from the {side}.",
    ),
    "chest tube": (
        "A {side} chest tube is in place.",
        "{side} thoracostomy tube is well positioned.",
        "Pleural drain enters the {side} hemithorax.",
    ),
    "pacemaker": (
        "A {side} pacemaker is present.",
        "{side} sided pacemaker with an intact lead.",
        "Cardiac pacemaker generator overlies the {side} chest.",
    ),
    "sternal hardware": (
        "Median sternotomy hardware is aligned.",
        "Intact hardware after sternotomy.",
        "Sternal fixation hardware from previous cardiac surgery.",
    ),
}

_NEGATIVE = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is not widened.",
        "Mediastinal silhouette is within normal limits.",
        "The cardiomediastinal silhouette is unremarkable.",
    ),
    "Cardiomegaly": ("Heart size is normal.", "The heart is not enlarged.", "No cardiomegaly."),
    "Lung Lesion": ("No pulmonary nodule.", "No mass or nodule is identified."),
    "Lung Opacity": ("No focal opacity.", "There is no infiltrate."),
    "Edema": ("No pulmonary edema.", "No evidence of edema."),
    "Consolidation": ("No focal consolidation.", "There is no lobar consolidation."),
    "Pneumonia": ("No evidence of pneumonia.", "There are no signs of pneumonia."),
    "Atelectasis": ("No atelectasis.",),
    "Pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax.", "Pneumothorax is absent."),
    "Pleural Effusion": ("No pleural effusion.", "There is no pleural fluid.", "No effusion is seen."),
    "Pleural Other": ("No pleural thickening.",),
    "Fracture": ("No displaced rib fracture.", "No acute fracture is seen.", "The ribs show no fracture."),
    "Support Devices": ("No tubes or catheters are present.",),
}
_DENIAL_RATE = {
    "Enlarged Cardiomediastinum": 0.35,
    "Cardiomegaly": 0.55,
    "Lung Lesion": 0.1,
    "Lung Opacity": 0.1,
    "Edema": 0.2,
    "Consolidation": 0.35,
    "Pneumonia": 0.15,
    "Atelectasis": 0.05,
    "Pneumothorax": 0.45,
    "Pleural Effusion": 0.45,
    "Pleural Other": 0.05,
    "Fracture": 0.25,
    "Support Devices": 0.05,
}
_DENIED_TOGETHER = (
    "No pleural effusion or pneumothorax.",
    "There is no pneumothorax or pleural effusion.",
    "Neither effusion nor pneumothorax is demonstrated.",
)

_ORDER = ("Support Devices", "Cardiomegaly", "Enlarged Cardiomediastinum")
_LUNGS = ("Edema", "Consolidation", "Pneumonia", "Lung Opacity", "Lung Lesion", "Atelectasis")
_PLEURA = ("Pleural Effusion", "Pneumothorax")

_SCALES = {
    "severity": ("mild", "moderate", "severe"),
    "adverb": ("mildly", "moderately", "markedly"),
    "size": ("small", "medium", "large"),
    "grade": ("minimal", "moderate", "marked"),
    "density": ("subtle", "moderate", "dense"),
    "extent": ("limited", "moderate", "extensive"),
    "displaced": ("minimally displaced", "displaced", "grossly displaced"),
}
_LOBES = {
    ("left", "upper"): "left upper lobe",
    ("left", "mid"): "lingula",
    ("left", "lower"): "left lower lobe",
    ("right", "upper"): "right upper lobe",
    ("right", "mid"): "right middle lobe",
    ("right", "lower"): "right lower lobe",
}


def _words(observation: Observation) -> dict[str, str]:
    """What a template's blanks stand for."""
    grade = ("mild", "moderate", "severe").index(observation.severity)
    many, both = observation.count > 1, observation.side == "bilateral"
    words = {blank: scale[grade] for blank, scale in _SCALES.items()}
    words |= {
        "side": observation.side or "",
        "zone": observation.zone or "",
        "lobe": _LOBES.get((observation.side or "", observation.zone or ""), ""),
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
    return words


def _fill(template: str, observation: Observation) -> str:
    sentence = template.format_map(_words(observation))
    return sentence[0].upper() + sentence[1:]


@dataclass
class _Writer:
    """Writes a report choice by choice."""

    choose: Choose
    sentences: list[str] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)

    def maybe(self, probability: float) -> bool:
        return self.choose((probability, 1 - probability)) == 0

    def say(self, templates: Sequence[str], observation: Observation | None = None) -> None:
        template = templates[self.choose([1 / len(templates)] * len(templates))]
        self.sentences.append(_fill(template, observation) if observation else template)

    def deny(self, finding: str) -> None:
        if self.maybe(_DENIAL_RATE[finding]):
            self.say(_NEGATIVE[finding])
            self.denied.add(finding)

    def state(self, finding: str, study: Study) -> None:
        """Say what the film shows of one finding, or perhaps deny it."""
        for observation in study.find(finding):
            if observation.device:
                self.say(_DEVICE[observation.device], observation)
            else:
                self.say((_POSITIVE if observation.is_certain else _HEDGED)[finding], observation)
        if not study.find(finding):
            self.deny(finding)

    def write(self, study: Study) -> None:
        for section in SECTIONS:
            section(self, study)


def _opening(writer: _Writer, study: Study) -> None:
    if writer.maybe(0.8):
        writer.say(_OPENING[study.view])


def _chest(writer: _Writer, study: Study) -> None:
    for finding in _ORDER:
        writer.state(finding, study)


def _lungs(writer: _Writer, study: Study) -> None:
    if not any(study.find(finding) for finding in _LUNGS) and writer.maybe(0.7):
        writer.say(_CLEAR)
    for finding in _LUNGS:
        writer.state(finding, study)


def _pleura(writer: _Writer, study: Study) -> None:
    if not any(study.find(finding) for finding in _PLEURA) and writer.maybe(0.4):
        writer.say(_DENIED_TOGETHER)
        writer.denied.update(_PLEURA)
    else:
        for finding in _PLEURA:
            writer.state(finding, study)
    writer.state("Pleural Other", study)


def _bones(writer: _Writer, study: Study) -> None:
    writer.state("Fracture", study)


def _closing(writer: _Writer, study: Study) -> None:
    if _is_normal(study) and writer.maybe(0.6):
        writer.say(_CLOSING)


SECTIONS = (_opening, _chest, _lungs, _pleura, _bones, _closing)
"""The parts of a report, in order; each makes its choices alone."""


def _is_normal(study: Study) -> bool:
    return not any(observation.finding != "Support Devices" for observation in study.observations)


@dataclass(frozen=True)
class Report:
    """A report and what is known of it.

    Attributes:
        text: the report.
        labels: the 14 findings as the text states them: 1, 0, -1 (uncertain), NaN (not mentioned),
            float32, shape ``(14,)``.
        log_probability: natural logarithm of p(text | what the film shows).
    """

    text: str
    labels: NDArray[np.float32]
    log_probability: float


def write_report(study: Study) -> Report:
    """Write the report of a study; the same study always gets the same report."""
    return _write(study, Draw(f"report/{study.id}"))


def rewrite_report(study: Study) -> Report:
    """Write another report of the same study, as a second reader would: equal findings, other choices."""
    return _write(study, Draw(f"second report/{study.id}"))


def _write(study: Study, draw: Draw) -> Report:
    log_probability = 0.0

    def choose(probabilities: Sequence[float]) -> int:
        nonlocal log_probability
        choice = draw.index(tuple(probabilities))
        log_probability += math.log(probabilities[choice])
        return choice

    writer = _Writer(choose)
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
    """The perplexity that a model reaches which knows the grammar and sees every film perfectly.

    Args:
        reports: the reports to be predicted.
        num_tokens: their tokens together, counting the closing SEP of each.

    Returns:
        ``exp(-sum of log p(report | its findings) / tokens)``.
    """
    return math.exp(-sum(report.log_probability for report in reports) / num_tokens)


def sentences() -> list[str]:
    """Every sentence that the grammar can produce, without repetition."""
    found: dict[str, None] = dict.fromkeys(
        [
            *_CLOSING,
            *_CLEAR,
            *_DENIED_TOGETHER,
            *(s for group in (_OPENING, _NEGATIVE) for v in group.values() for s in v),
        ]
    )
    for finding, templates in [*_POSITIVE.items(), *_HEDGED.items(), *_DEVICE.items()]:
        for observation in variants(finding):
            found.update(dict.fromkeys(_fill(template, observation) for template in templates))
    return list(found)
