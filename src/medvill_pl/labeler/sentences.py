"""Sentences of a free-text report, whatever its line breaks, numbering and de-identification marks."""

import re

_REWRITES = (
    (re.compile(r"<br\s*/?>", re.IGNORECASE), " "),
    # De-identification: MIMIC's and others' blanks become Open-I's XXXX, one word that no phrase holds.
    (re.compile(r"_{2,}|\[\*\*.*?\*\*\]"), " XXXX "),
    (re.compile(r"\band/or\b", re.IGNORECASE), "or"),
    (re.compile(r"(?<=[A-Za-z]{2})\s*/\s*(?=[A-Za-z]{2})"), " or "),  # not s/p, w/o, r/o
    (re.compile(r"(?<=\w)-(?=\w)"), " "),
    (re.compile(r"\.{2,}"), "."),
)
_HEADER = re.compile(r"^[ \t]*[A-Z][A-Z &]{3,40}:", re.MULTILINE)
_LIST_ITEM = re.compile(r"(?:^|(?<=[.:?!])[ \t]+|\n)[ \t]*\(?\d{1,2}[.)](?=[ \t]+\S)")
_STOP = re.compile(r"(?<=[.?!])(?<!\b[Dd]r\.)(?<!\bvs\.)(?<!\bcf\.)\s+|\n\s*\n")
# A line break ends a sentence where a new one begins, not where a line is only wrapped.
_UNFINISHED = r"(?<![,;])(?<!\b(?:of|or|in|is|no|to|at|by))(?<!\b(?:the|and|for|are|was))(?<!\bwith)"
_NEW_LINE = re.compile(_UNFINISHED + r"\n\s*(?=[A-Z][a-z])")
_BLANK = re.compile(r"[\W\d_]*")
_MAX_CHARACTERS = 2000


def split_sentences(text: str) -> list[str]:
    r"""Split a report into sentences.

    Line breaks within a sentence are joined, numbers of lists and headers in capitals are dropped,
    ``/`` between words reads as *or*, hyphens as spaces, and blanks left by de-identification as
    ``XXXX``. A text without full stops is divided after 2,000 characters.

    Example:
        >>> split_sentences("1. Small left\neffusion. 2. No edema.")
        ['Small left effusion.', 'No edema.']
    """
    text = text.replace("\r\n", "\n")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _LIST_ITEM.sub("\n\n", _HEADER.sub("\n\n", text))
    text = _NEW_LINE.sub("\n\n", text)
    pieces = (" ".join(piece.split()) for piece in _STOP.split(text))
    return [part for piece in pieces if not _BLANK.fullmatch(piece) for part in _divide(piece)]


def _divide(sentence: str) -> list[str]:
    parts = []
    while len(sentence) > _MAX_CHARACTERS:
        end = sentence.rfind(" ", 1, _MAX_CHARACTERS) + 1 or _MAX_CHARACTERS
        parts.append(sentence[:end].rstrip())
        sentence = sentence[end:]
    return [*parts, sentence]
