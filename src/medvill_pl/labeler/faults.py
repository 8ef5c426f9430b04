"""Where the original labeler is wrong again and again: imitated to agree with it, and easily switched off.

The original parses sentences, and its parser fails on some turns of phrase, most often in the last
sentence of a report. Each pattern was seen in several reports, a few of them in one each of two findings.
"""

import re
from typing import Literal, NamedTuple

from medvill_pl.labeler.negation_uncertainty import POSITIVE, UNCERTAIN, Judgement

MISREAD: dict[str, tuple[str, ...]] = {
    "Lung Lesion": ("lumpectomy", "lumpectomies"),
    "Support Devices": (  # *tube* and *plate* inside words
        *("tuberculosis", "tuberculous", "platelike", "plate like", "endplate", "endplates"),
    ),
}
"""Words that the original takes for a finding."""


class Fault(NamedTuple):
    r"""Words for which the original gives a state of its own.

    Attributes:
        finding: the finding.
        state: what the original says.
        words: regular expression over the sentence, in lower case, words separated by spaces.
        position: whether the sentence is the last of the report.

    Example:
        >>> Fault("Cardiomegaly", 1, r" normal \.$", "last").position
        'last'
    """

    finding: str
    state: int
    words: str
    position: Literal["anywhere", "last", "not last"] = "anywhere"


_MEDIASTINUM, _HEART = "Enlarged Cardiomediastinum", "Cardiomegaly"
_LIST = r"^no pneumonia , effusions , edema , pneumothorax , adenopathy , nodules or masses"

FAULTS = (
    # The closing word of a report is not read.
    *(Fault(finding, POSITIVE, r" normal \.$", "last") for finding in (_HEART, _MEDIASTINUM)),
    *(Fault(finding, POSITIVE, r"(?<!grossly) unremarkable \.$", "last") for finding in (_HEART, _MEDIASTINUM)),
    Fault(_HEART, POSITIVE, r"(vascularity|appear) within normal limits \.$", "last"),
    Fault(_HEART, POSITIVE, r"^the .* is within normal limits \.$", "last"),
    Fault(_MEDIASTINUM, POSITIVE, r"(appear|silhouette) within normal limits \.$", "last"),
    # Predicates and modifiers that the parser misses.
    Fault(_HEART, POSITIVE, r"^the heart size .*\bappear within normal limits"),
    Fault(_HEART, POSITIVE, r"^the heart size .*\bstable"),
    Fault(_HEART, POSITIVE, r"^the heart silhouette and mediastinal contours are not enlarged"),
    Fault(_HEART, POSITIVE, r"size xxxx within normal limits"),
    Fault(_HEART, POSITIVE, r"^the heart pulmonary xxxx appear normal"),
    Fault(_MEDIASTINUM, POSITIVE, r"^heart and mediastinum of normal size and contour"),
    Fault(_MEDIASTINUM, POSITIVE, r"^heart and mediastinum within normal limits"),
    Fault(_MEDIASTINUM, POSITIVE, r"^unremarkable mediastinal contour \."),
    Fault(_MEDIASTINUM, POSITIVE, r"^normal heart size mediastinal contours"),
    Fault(_MEDIASTINUM, POSITIVE, r"silhouette has normal contour"),
    Fault(_MEDIASTINUM, POSITIVE, r"(silhouette stable|appears? stable) \."),
    Fault(_MEDIASTINUM, POSITIVE, r"^the heart and mediastinal contours are (stable|unchanged)"),
    # Lists: the denial does not reach the last member.
    Fault("Pleural Effusion", POSITIVE, r"^there is no pneumothorax or (\w+ )?pleural effusion \.$", "last"),
    Fault("Pneumothorax", POSITIVE, r"^negative for focal pulmonary consolidation , .* or pneumothorax \.$", "last"),
    Fault("Pneumothorax", POSITIVE, r"lungs are without focal airspace consolidation , .* pneumothora\w+ \.$", "last"),
    Fault("Pneumothorax", POSITIVE, r"without focal area of consolidation , .* pneumothorax \.$", "last"),
    Fault("Pneumothorax", POSITIVE, r"^no pleural effusions or pneumothorax \.", "not last"),
    Fault("Pneumothorax", UNCERTAIN, r"^no pleural fluid collection or pneumothorax"),
    Fault("Consolidation", POSITIVE, r"^no pneumothorax , .* or focal air space consolidation", "not last"),
    Fault("Consolidation", POSITIVE, r"^there is no pneumothorax , .* or focal (air space )?consolidation \.$", "last"),
    *(Fault(finding, UNCERTAIN, _LIST) for finding in ("Pleural Effusion", "Edema", "Pneumothorax")),
    Fault("Lung Lesion", POSITIVE, _LIST),
    # Nouns taken for verbs.
    Fault("Consolidation", POSITIVE, r"^no (focal airspace|xxxx) consolidations"),
    Fault("Lung Opacity", POSITIVE, r"^no focal air space opacities \."),
    Fault("Lung Lesion", POSITIVE, r"^no suspicious appearing lung nodules \."),
    Fault("Fracture", POSITIVE, r"^no (visible|visualized rib) fractures"),
    Fault("Fracture", POSITIVE, r"^no (acute , )?displaced rib fractures \.", "not last"),
    Fault("Fracture", POSITIVE, r"^no (gross )?evidence (of displaced|for) rib fractures? \."),
    Fault("Support Devices", POSITIVE, r"catheter has been removed"),
    # What is not suggested.
    Fault("Pneumonia", POSITIVE, r"^there is no focal air space opacity to suggest a pneumonia \.$", "last"),
    Fault("Pneumonia", POSITIVE, r"^no focal airspace consolidation to suggest pneumonia"),
    Fault("Pleural Effusion", POSITIVE, r"blunting to suggest large pleural effusion"),
    *(Fault(finding, POSITIVE, r"\bno findings to suggest") for finding in ("Pleural Effusion", "Edema")),
    Fault("Support Devices", POSITIVE, r"to suggest .* or active tuberculous infection"),
    # Denied and yet enough to rule out No Finding.
    Fault("Other", POSITIVE, r"noncalcified"),
    # A doubt that opens the sentence.
    *(
        Fault(finding, POSITIVE, r"^possible (?!small|pericardial)")
        for finding in ("Pleural Effusion", "Pneumonia", "Lung Opacity")
    ),
)

_PATTERNS: dict[str, list[tuple[re.Pattern[str], Fault]]] = {}
for _fault in FAULTS:
    _PATTERNS.setdefault(_fault.finding, []).append((re.compile(_fault.words), _fault))


def find_fault(finding: str, sentence: str, is_last: bool) -> Judgement | None:
    """Look up what the original makes of a sentence where it goes wrong.

    Args:
        finding: the finding mentioned.
        sentence: words in lower case, separated by spaces.
        is_last: whether the report ends with it.

    Returns:
        What the original says, or None where it makes no known error.

    Example:
        >>> find_fault("Cardiomegaly", "heart size normal .", is_last=True)
        Judgement(state=1, rule='fault of the original')
        >>> find_fault("Cardiomegaly", "heart size normal .", is_last=False) is None
        True
    """
    position = "last" if is_last else "not last"
    for pattern, fault in _PATTERNS.get(finding, ()):
        if fault.position in ("anywhere", position) and pattern.search(sentence):
            return Judgement(fault.state, "fault of the original")
    return None
