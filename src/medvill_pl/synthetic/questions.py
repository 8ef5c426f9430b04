"""Questions about a radiograph of the embedded corpus, closed and open, with their answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medvill_pl.batch import FINDINGS
from medvill_pl.synthetic.study import Draw, Observation, Study

QuestionType = Literal["presence", "side", "zone", "severity", "view", "count", "device"]


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        question: the question, in lower case.
        answer: the answer: ``yes`` or ``no`` to a closed question, one or two words to an open one.
        answer_type: ``closed`` or ``open``.
        question_type: what is asked about.

    Example:
        >>> Question("is edema present?", "yes", "closed", "presence").answer
        'yes'
    """

    question: str
    answer: str
    answer_type: Literal["closed", "open"]
    question_type: QuestionType


_NAMES = {
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Cardiomegaly": "cardiomegaly",
    "Lung Lesion": "nodule",
    "Lung Opacity": "hazy opacity",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "device",
}
_COUNTED = {"Lung Lesion": "nodules", "Fracture": "broken ribs"}
_PRESENCE = ("is there any {name}?", "does the film show {name}?", "is {name} present?")
_GRADED = ("Cardiomegaly", "Edema", "Pneumothorax", "Pleural Effusion", "Consolidation", "Pleural Other")


def _closed(question: str, is_true: bool, question_type: QuestionType) -> Question:
    return Question(question, "yes" if is_true else "no", "closed", question_type)


def _presence(study: Study, draw: Draw) -> Iterator[Question]:
    """As many findings that are present as ones that are absent."""
    present = [f for f in FINDINGS[1:] if any(o.is_certain for o in study.find(f))][:3]
    absent = [f for f in FINDINGS[1:] if not study.find(f)]
    chosen = [(finding, True) for finding in present]
    for _ in range(max(1, len(present))):
        finding = absent[draw.index((1.0,) * len(absent))]
        chosen.append((finding, False))
        absent.remove(finding)
    for finding, is_present in chosen:
        template = _PRESENCE[draw.index((1.0,) * len(_PRESENCE))]
        yield _closed(template.format(name=_NAMES[finding]), is_present, "presence")


def _details(observation: Observation, draw: Draw) -> Iterator[Question]:
    """Side, zone, severity and count of one finding, each as an open or a closed question."""
    name = _NAMES[observation.finding]
    if observation.side and observation.finding != "Edema":
        if draw.chance(0.5):
            side = "left" if draw.chance(0.5) else "right"
            yield _closed(f"is the {name} only on the {side} side?", observation.side == side, "side")
        else:
            yield Question(f"which side is the {name} on?", observation.side, "open", "side")
    if observation.zone:
        yield Question(f"in which zone is the {name}?", observation.zone, "open", "zone")
    if observation.finding in _GRADED:
        if draw.chance(0.5):
            yield _closed(f"is the {name} severe?", observation.severity == "severe", "severity")
        else:
            yield Question(f"how severe is the {name}?", observation.severity, "open", "severity")
    if observation.finding in _COUNTED:
        counted = _COUNTED[observation.finding]
        if draw.chance(0.5):
            yield _closed(f"are there several {counted}?", observation.count > 1, "count")
        else:
            yield Question(
                f"how many {counted} are there?", ("one", "two", "three")[observation.count - 1], "open", "count"
            )


def ask(study: Study) -> list[Question]:
    """Ask about one radiograph; the same study always gets the same questions.

    Findings that the report hedges about are not asked about.

    Args:
        study: what the radiograph shows; the choice of questions follows from its ``id``.

    Returns:
        Presence first, then side, zone, severity and count of each finding, the device, the projection.

    Example:
        >>> from medvill_pl.synthetic.study import studies
        >>> questions = ask(next(studies("train")))
        >>> questions[0].question, questions[0].answer
        ('does the film show consolidation?', 'yes')
    """
    draw = Draw(f"questions/{study.id}")
    questions = list(_presence(study, draw))
    for observation in study.observations:
        if observation.is_certain and observation.device is None:
            questions += _details(observation, draw)
    devices = study.find("Support Devices")
    if len(devices) == 1 and devices[0].device:
        questions.append(Question("which device is seen?", devices[0].device, "open", "device"))
    if draw.chance(0.5):
        view = "ap" if draw.chance(0.5) else "pa"
        questions.append(_closed(f"is the projection {view}?", study.view.lower() == view, "view"))
    else:
        questions.append(Question("what is the projection?", study.view.lower(), "open", "view"))
    return questions
