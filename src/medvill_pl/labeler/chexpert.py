"""The rule-based CheXpert labeler: mentions, what is said of each, and one state per finding."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import spacy
from numpy.typing import NDArray
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc
from spacy.tokens import Span as SpacySpan
from spacy.util import filter_spans

from medvill_pl.batch import FINDINGS
from medvill_pl.labeler.faults import MISREAD, find_fault
from medvill_pl.labeler.negation_uncertainty import CUES, NEGATIVE, POSITIVE, UNCERTAIN, Span, judge
from medvill_pl.labeler.phrases import HEART_FAILURE, MENTIONS, NOT_MENTIONS, OTHER, OTHER_FINDINGS
from medvill_pl.labeler.sentences import split_sentences


class Evidence(NamedTuple):
    """One reason for a label.

    Attributes:
        finding: one of ``FINDINGS``, or "Other" for what only rules out No Finding.
        state: 1 positive, 0 negative, -1 uncertain.
        phrase: the words that mention the finding.
        sentence: where they stand, as :func:`split_sentences` writes it.
        rule: why the mention has this state.

    Example:
        >>> CheXpertLabeler().explain("No effusion.")[0].rule
        'denied before: no'
    """

    finding: str
    state: int
    phrase: str
    sentence: str
    rule: str


class CheXpertLabeler:
    """Reads the 14 CheXpert observations off report texts by rules, without a model to download.

    It imitates the labeler of Irvin et al. 2019 ("CheXpert: A Large Chest Radiograph Dataset"):
    phrases that mention a finding, rules for doubt and denial, one state per finding over all
    mentions. Its errors are the original's and its own; docs/labeler.md gives the measured agreement.

    Args:
        imitate_faults: True gives the original's label also where its parser is known to misread a
            sentence ("Heart size normal." at the end of a report is Cardiomegaly). False
            gives what the sentence says.

    Example:
        >>> labels = CheXpertLabeler()(["Small left effusion. No pneumothorax."])
        >>> labels[0, [FINDINGS.index("Pleural Effusion"), FINDINGS.index("Pneumothorax")]].tolist()
        [1.0, 0.0]
    """

    name = "rule-based CheXpert labeler"

    def __init__(self, imitate_faults: bool = True) -> None:
        self.imitate_faults = imitate_faults
        self._language = spacy.blank("en")
        mentions = {**MENTIONS, OTHER: OTHER_FINDINGS}
        if imitate_faults:
            mentions |= {finding: mentions[finding] + words for finding, words in MISREAD.items()}
        self._mentions = _matcher(self._language, mentions)
        self._not_mentions = _matcher(self._language, NOT_MENTIONS)
        self._cues = _matcher(self._language, CUES)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Label reports.

        Args:
            texts: the reports, whole or their impression and findings.

        Returns:
            1 positive, 0 negative, -1 uncertain, NaN not mentioned, shape ``(N, 14)``, columns as
            ``FINDINGS``. An empty text is No Finding, as with the original.

        Raises:
            ValueError: if a text is no string.
        """
        if isinstance(texts, str):
            raise ValueError("the labeler takes a list of texts, not one string")
        labels = np.full((len(texts), len(FINDINGS)), np.nan, np.float32)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {index} must be a string, not {type(text).__name__}")
            for finding, state in combine(self._read(text)).items():
                labels[index, FINDINGS.index(finding)] = state
        return labels

    def explain(self, text: str) -> list[Evidence]:
        """List the evidence behind the labels of a report, in the order of the text.

        Where a finding has several pieces, :func:`combine` says which state they give.

        Example:
            >>> [(piece.finding, piece.state) for piece in CheXpertLabeler().explain("No effusion or edema.")]
            [('Pleural Effusion', 0), ('Edema', 0), ('No Finding', 1)]
        """
        evidence = self._read(text)
        if combine(evidence).get("No Finding") == POSITIVE:
            evidence.append(Evidence("No Finding", POSITIVE, "", "", "no finding is positive or uncertain"))
        return evidence

    def _read(self, text: str) -> list[Evidence]:
        sentences = split_sentences(text)
        evidence = []
        for index, sentence in enumerate(sentences):
            evidence += self._read_sentence(sentence, is_last=index == len(sentences) - 1)
        return evidence

    def _read_sentence(self, sentence: str, is_last: bool) -> list[Evidence]:
        doc = self._language.make_doc(sentence)
        words = [token.lower_ for token in doc]
        mentions = self._find_mentions(doc, words)
        if not mentions:
            return []
        cues = _spans(self._cues(doc, as_spans=True))
        evidence = []
        for mention in mentions:
            fault = find_fault(mention.label, " ".join(words), is_last) if self.imitate_faults else None
            state, rule = fault or judge(mention, mentions, cues, words)
            phrase = doc[mention.start : mention.end].text
            evidence.append(Evidence(mention.label, state, phrase, sentence, rule))
            if phrase.lower() in HEART_FAILURE and state != NEGATIVE:
                evidence.append(Evidence("Cardiomegaly", UNCERTAIN, phrase, sentence, "heart failure"))
        return evidence

    def _find_mentions(self, doc: Doc, words: Sequence[str]) -> list[Span]:
        """The longest mentions of each finding, without overlaps; two findings may share words."""
        by_finding: dict[str, list[SpacySpan]] = {}
        for span in self._mentions(doc, as_spans=True):
            by_finding.setdefault(span.label_, []).append(span)
        if not by_finding:
            return []
        others = _spans(self._not_mentions(doc, as_spans=True))
        mentions = [span for spans in by_finding.values() for span in _spans(spans) if not _is_within(span, others)]
        # As the original: *mediastinum* as the first word of a sentence is no mention.
        mentions = [span for span in mentions if (span.start, words[span.end - 1]) != (0, "mediastinum")]
        return sorted(mentions, key=lambda span: (span.start, span.label))


def combine(evidence: Sequence[Evidence]) -> dict[str, int]:
    """Give each finding that is mentioned one state, and No Finding its own, as the original does.

    Positive outweighs negative, and uncertain does too; uncertain with positive alone is positive,
    and where all three occur it is uncertain. No Finding is positive where nothing but support
    devices is positive or uncertain, other abnormalities included; it is never negative.

    Example:
        >>> combine([Evidence("Edema", UNCERTAIN, "", "", ""), Evidence("Edema", POSITIVE, "", "", "")])
        {'Edema': 1}
    """
    states: dict[str, set[int]] = {}
    for piece in evidence:
        states.setdefault(piece.finding, set()).add(piece.state)
    combined = {finding: _outweighing(of_finding) for finding, of_finding in states.items()}
    is_normal = all(state == NEGATIVE for finding, state in combined.items() if finding != "Support Devices")
    combined.pop(OTHER, None)
    return combined | ({"No Finding": POSITIVE} if is_normal else {})


def _outweighing(states: set[int]) -> int:
    if {NEGATIVE, UNCERTAIN} <= states:
        return UNCERTAIN
    return POSITIVE if POSITIVE in states else min(states)


def _matcher(language: Language, phrases: Mapping[str, Iterable[str]]) -> PhraseMatcher:
    matcher = PhraseMatcher(language.vocab, attr="LOWER")
    for label, group in phrases.items():
        matcher.add(label, [language.make_doc(phrase) for phrase in group])
    return matcher


def _spans(spans: Iterable[SpacySpan]) -> list[Span]:
    """Spans without overlaps, the longest first where they would, in the order of the text."""
    return [Span(span.label_, span.start, span.end) for span in filter_spans(spans)]


def _is_within(span: Span, others: Iterable[Span]) -> bool:
    return any(other.label == span.label and other.start <= span.start and span.end <= other.end for other in others)
