"""Whether a mention is affirmed, denied or doubted: cues, and how far each reaches within a sentence."""

from collections.abc import Sequence
from typing import NamedTuple

from medvill_pl.labeler.phrases import CONGESTION, SIZE_OR_SHAPE

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1

CUES: dict[str, tuple[str, ...]] = {
    "no denial": (  # looks like a denial, and denies something else
        *("no change", "no changes", "no significant change", "no interval change", "no significant interval change"),
        *("no substantial change", "no appreciable change", "no increase", "no decrease", "no improvement"),
        *("without change", "without significant change", "without interval change"),
        *("without significant interval change", "not changed", "not significantly changed"),
        *("not only", "not well seen"),
    ),
    "denied before": (
        *("no", "not", "without", "never", "nor", "neither", "denies", "rather than", "unlikely", "devoid of"),
        *("negative for", "free of", "free from", "clear of", "absence of", "lack of", "ruled out for", "w/o"),
        *("resolved", "resolution of", "removal of", "clearing of", "expanded and clear", "exclude"),
    ),
    "denied after": (
        *("is absent", "are absent", "not seen", "not identified", "not present", "is not seen", "are not seen"),
        *("no longer seen", "has resolved", "have resolved", "is resolved", "are resolved", "has cleared"),
        *("have cleared", "is excluded", "are excluded", "ruled out", "is unlikely"),
        *("has been removed", "have been removed", "was removed", "were removed"),
    ),
    "doubted before": (
        *("may", "maybe", "might", "could", "possible", "possibly", "probable", "potential", "potentially", "perhaps"),
        *("likely", "rule out", "r/o", "evaluate for"),
        *("suspect", "suspected", "suspicious for", "suspicion for", "suspicion of", "equivocal", "uncertain"),
        *("question", "questionable", "question of", "concern for", "concern of", "concerning for"),
        *("worrisome for", "raises concern", "correlate for", "correlate clinically for"),
        *("cannot exclude", "cannot rule out", "not exclude"),
    ),
    "no doubt": ("may be compatible with",),  # the original reads the last words only
    "doubted anywhere": ("?",),
    "doubted after": (
        *("is suspected", "are suspected", "is possible", "are possible", "is questioned", "is questionable"),
        *("is not excluded", "not excluded", "cannot be excluded", "not be excluded", "cannot be ruled out"),
        *("not entirely excluded", "difficult to exclude", "difficult to entirely exclude"),
    ),
    "choice": ("or", "versus", "vs", "vs."),
    "borderline": (
        *("upper limits of normal", "upper limits normal", "upper limit of normal", "upper normal"),
        *("top limits of normal", "near upper limits of normal", "near top normal"),
    ),
    "borderline size": (
        *("borderline heart size", "borderline cardiac size", "size borderline", "size is borderline"),
    ),
    "enlarged": ("enlarged", "enlargement", "widened", "widening", "prominent", "prominence"),
    "normal": (
        *("normal", "unremarkable", "within normal limits", "normal limits"),
        *("not enlarged", "not significantly enlarged", "not grossly enlarged", "not markedly enlarged"),
        *("stable normal", "stable and normal", "stable and unremarkable"),
        *("at the upper limits of normal", "at upper limits of normal", "at upper limits normal"),
        *("on the upper limits normal", "top normal in size", "near top normal in size"),
        "near top normal limits for technique",
    ),
    "stable": ("stable", "unchanged"),
}
"""Words around a mention that say what is said of it. Where cues overlap, the longest counts:
the kinds *no denial* and *no doubt* are there to keep shorter ones from counting."""

_CLAUSE_ENDS = frozenset(("but", "however", "although", "there", ";"))


class Span(NamedTuple):
    """Words ``[start, end)`` of a sentence: a mention (its label is the finding) or a cue (its kind).

    Example:
        >>> Span("Edema", 1, 2)  # "no edema"
        Span(label='Edema', start=1, end=2)
    """

    label: str
    start: int
    end: int


class Judgement(NamedTuple):
    """State of a mention (1, 0 or -1) and the rule that gave it.

    Example:
        >>> Judgement(NEGATIVE, "denied before: no").state
        0
    """

    state: int
    rule: str


def judge(mention: Span, mentions: Sequence[Span], cues: Sequence[Span], words: Sequence[str]) -> Judgement:
    """Decide what a sentence says of one mention.

    As in the CheXpert labeler (Irvin et al. 2019), a doubted denial ("cannot be excluded") comes before
    a denial, a denial before a doubt, and what nothing speaks against is affirmed.

    Args:
        mention: the mention to judge.
        mentions: all mentions of the sentence.
        cues: all cues of the sentence, without overlaps, in order.
        words: words of the sentence in lower case.

    Example:
        >>> edema = Span("Edema", 1, 2)
        >>> judge(edema, [edema], [Span("denied before", 0, 1)], ["no", "edema", "."])
        Judgement(state=0, rule='denied before: no')
    """
    cues = _in_clause(mention, cues, words)
    judgement = _doubt_or_denial(mention, cues, words)
    names_size = words[mention.end - 1] in SIZE_OR_SHAPE and words[mention.start] not in CUES["enlarged"]
    if judgement is None and names_size:
        judgement = _size_or_shape(mention, cues, words)
    if judgement is None:
        judgement = _choice(mention, mentions, cues, words)
    if judgement is None and " ".join(words[mention.start : mention.end]) in CONGESTION:
        judgement = Judgement(UNCERTAIN, "congestion alone")
    return judgement or Judgement(POSITIVE, "affirmed")


def _in_clause(mention: Span, cues: Sequence[Span], words: Sequence[str]) -> list[Span]:
    """Cues that no *but*, *however* or *there is* separates from the mention."""
    ends = [index for index, word in enumerate(words) if word in _CLAUSE_ENDS]
    first = max((index for index in ends if index < mention.start), default=-1)
    last = min((index for index in ends if index >= mention.end), default=len(words))
    return [cue for cue in cues if first < cue.start and cue.end <= last]


def _doubt_or_denial(mention: Span, cues: Sequence[Span], words: Sequence[str]) -> Judgement | None:
    before = {cue.label: cue for cue in cues if cue.end <= mention.start}  # the nearest of each kind
    after = {cue.label: cue for cue in reversed(cues) if cue.start >= mention.end}
    doubts = before.get("doubted anywhere"), after.get("doubted anywhere"), after.get("doubted after")
    if doubt := next((cue for cue in doubts if cue), None):
        return _by(UNCERTAIN, doubt, words)
    if "denied before" in before:
        return _by(NEGATIVE, before["denied before"], words)
    if "doubted before" in before:
        return _by(UNCERTAIN, before["doubted before"], words)
    if "denied after" in after:
        return _by(NEGATIVE, after["denied after"], words)
    return None


def _size_or_shape(mention: Span, cues: Sequence[Span], words: Sequence[str]) -> Judgement | None:
    """An organ's size or shape is borderline, enlarged, normal or stable.

    An enlargement said of it counts before what is said elsewhere; of the rest the first word counts.
    """
    for cue in cues:
        if mention.label == "Cardiomegaly" and cue.label == "borderline":
            return _by(POSITIVE, cue, words)
        if mention.label == "Cardiomegaly" and cue.label == "borderline size":
            return _by(UNCERTAIN, cue, words)
    after = [cue for cue in cues if cue.start >= mention.end and cue.label in ("enlarged", "normal")]
    if after and after[0].label == "enlarged" and "," not in words[mention.end : after[0].start]:
        return _by(POSITIVE, after[0], words)
    for cue in cues:
        if cue.label == "enlarged" and cue.end <= mention.start <= cue.end + 2:
            return _by(POSITIVE, cue, words)
        if cue.label == "normal":
            return _by(NEGATIVE, cue, words)
        if cue.label == "stable" and _is_of(cue, mention, words):
            return _by(UNCERTAIN, cue, words)
    return None


def _is_of(cue: Span, mention: Span, words: Sequence[str]) -> bool:
    """Whether *stable* is said of the mention, not of something beside it."""
    start, end = (cue.end, mention.start) if cue.end <= mention.start else (mention.end, cue.start)
    return not {",", "enlargement", "with", "over"} & set(words[start:end])


def _choice(mention: Span, mentions: Sequence[Span], cues: Sequence[Span], words: Sequence[str]) -> Judgement | None:
    """*Atelectasis or scarring*: both are uncertain. *Catheter or drain*: a device for certain."""
    others = [other for other in mentions if other.label != mention.label]
    same = [other for other in mentions if other.label == mention.label]
    for cue in cues:
        if cue.label != "choice":
            continue
        precedes = cue.start == mention.end and not any(cue.end <= twin.start <= cue.end + 3 for twin in same)
        follows = cue.end <= mention.start <= cue.end + 3 and any(other.end == cue.start for other in others)
        if precedes or follows:
            return _by(UNCERTAIN, cue, words)
    return None


def _by(state: int, cue: Span, words: Sequence[str]) -> Judgement:
    return Judgement(state, f"{cue.label}: {' '.join(words[cue.start : cue.end])}")
