"""The text of a report: its Findings and Impression, without de-identification marks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

_MARK = r"(?:X{3,}|_{2,})"
_MARKS = re.compile(rf"\({_MARK}\)|[-/<>]?{_MARK}(?:'\w)?[-/<>]?")
_SPACE_BEFORE = re.compile(r" ([.,;:)])")
_PILED = re.compile(r"[,;:]+(?=[.,;:])")
_NO_TEXT = "the report has neither findings nor an impression"


def clean(text: str) -> str:
    r"""Make one line of a text and take out the marks of de-identification.

    ``XXXX`` (Open-I) and ``___`` (MIMIC-CXR) are removed, with the hyphen or slash that joins them to a word and the
    brackets around them; so are spaces and commas that then stand before a punctuation mark. Nothing else is changed.

    Example:
        >>> clean("Compared to XXXX, the XXXX/picc line\n  is unchanged (___). Dr. ___ was told.")
        'Compared to, the picc line is unchanged. Dr. was told.'
    """
    text = " ".join(_MARKS.sub(" ", text).split())
    return _PILED.sub("", _SPACE_BEFORE.sub(r"\1", text)).lstrip(".,;: ")


def longer(findings: str, impression: str) -> str:
    """The one of two sections with more words, cleaned; of equally long ones, the findings.

    Raises:
        ValueError: if both are empty.

    Example:
        >>> longer("The lungs are clear.", "Normal.")
        'The lungs are clear.'
    """
    text = max(clean(findings), clean(impression), key=lambda section: len(section.split()))
    if not text:
        raise ValueError(_NO_TEXT)
    return text


def split_sections(text: str) -> dict[str, str]:
    """Split a free-text report of MIMIC-CXR into ``findings`` and ``impression``; either may be missing.

    A heading is the start of a line in capital letters, without digits, up to a colon. Of a report with a wet reading
    or an addendum in front, the part after the last line ``FINAL REPORT`` counts. Headings with FINDING open the
    findings, those with IMPRESSION or CONCLUSION the impression, those that only name the view ("PA AND LATERAL VIEWS
    OF THE CHEST:") the findings; any other heading closes a section. Parts of one name are joined.

    Example:
        >>> lines = ["FINAL REPORT", "INDICATION: Fever.", "FINDINGS:", "The lungs are clear.", "IMPRESSION: Normal."]
        >>> split_sections(chr(10).join(lines))
        {'findings': 'The lungs are clear.', 'impression': 'Normal.'}
    """
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == "FINAL REPORT"]
    sections: dict[str, list[str]] = {}
    current = ""
    for line in lines[starts[-1] + 1 if starts else 0 :]:
        head, colon, rest = line.partition(":")
        if colon and _is_heading(head.strip()):
            current, line = _section_of(head.lower()), rest
        sections.setdefault(current, []).append(line)
    sections.pop("", None)
    return {name: "\n".join(parts).strip() for name, parts in sections.items()}


def _is_heading(head: str) -> bool:
    is_plain = 0 < len(head) < 80 and not any(character.isdigit() for character in head)
    return is_plain and (head.isupper() or head.lower() in ("findings", "impression", "conclusion"))


def _section_of(head: str) -> str:
    if "finding" in head:
        return "findings"
    if "impression" in head or "conclusion" in head:
        return "impression"
    if head.strip().startswith(("exam", "technique", "comparison", "indication", "history", "reason")):
        return ""
    return "findings" if re.search(r"\b(chest|views?|radiographs?)\b", head) else ""


def mimic_text(report: str) -> str:
    """The longer of Findings and Impression of a MIMIC-CXR report, cleaned.

    Raises:
        ValueError: if it has neither.

    Example:
        >>> mimic_text("FINDINGS: ___ line is unchanged. IMPRESSION is missing here.")
        'line is unchanged. IMPRESSION is missing here.'
    """
    sections = split_sections(report)
    return longer(sections.get("findings", ""), sections.get("impression", ""))


@dataclass(frozen=True)
class OpenIReport:
    """One XML file of Open-I.

    Attributes:
        uid: such as ``CXR1900``.
        findings: the section, as it stands there.
        impression: the section, as it stands there.
        mesh: its annotations, such as ``Cardiomegaly/mild``.
        images: identifiers of its images, such as ``CXR1900_IM-0584-1001``.

    Example:
        >>> report = OpenIReport("CXR1", "The lungs are clear.", "Normal.", ("Opacity/lung/base/left",), ())
        >>> report.text, report.mesh_input
        ('The lungs are clear.', 'Opacity lung base left.')
    """

    uid: str
    findings: str
    impression: str
    mesh: tuple[str, ...]
    images: tuple[str, ...]

    @property
    def text(self) -> str:
        """The longer section, cleaned; ``ValueError`` if both are empty."""
        return longer(self.findings, self.impression)

    @property
    def labeler_input(self) -> str:
        """What the CheXpert labeler is given: impression, a line break and findings, with de-identification marks."""
        return f"{self.impression}\n{self.findings}".strip()

    @property
    def mesh_input(self) -> str:
        """The annotations as sentences: ``Opacity/lung/base/left`` is "Opacity lung base left."."""
        return " ".join(f"{' '.join(term.split('/'))}." for term in self.mesh)


_UID = re.compile(r"CXR\d{1,9}")
_IMAGE_ID = re.compile(r"CXR\d{1,9}_IM(?:-\d{1,9}){1,3}")
_DOUBLED = re.compile(r"^(?:CXR)?(\d+)_(?:\1_)?IM-")


def image_id(name: str) -> str:
    """The identifier of an image of Open-I: ``CXR``, report, ``_IM-`` and numbers.

    File names of the DICOM archive and of Kaggle leave ``CXR`` out or give the report twice, as one report does.

    Example:
        >>> image_id("CXR1_1_IM-0001-4001"), image_id("1_IM-0001-4001")
        ('CXR1_IM-0001-4001', 'CXR1_IM-0001-4001')
    """
    return _DOUBLED.sub(r"CXR\1_IM-", name)


def read_open_i_xml(content: bytes) -> OpenIReport:
    """Read one XML file of Open-I.

    Raises:
        ValueError: if it is no such file, has a document type (entities, bombs), or a malformed identifier.

    Example:
        >>> report = read_open_i_xml(
        ...     b'<eCitation><uId id="CXR1"/><AbstractText Label="IMPRESSION">Normal chest.</AbstractText></eCitation>'
        ... )
        >>> report.uid, report.text
        ('CXR1', 'Normal chest.')
    """
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ValueError(f"not a readable XML file: {' '.join(str(error).split()) or type(error).__name__}") from error
    uid = next((element.get("id", "") for element in root.iter("uId")), "")
    images = tuple(image_id(element.get("id", "")) for element in root.iter("parentImage"))
    if not _UID.fullmatch(uid):
        raise ValueError(f"not a report of Open-I: its uId is {uid!r}")
    if wrong := [name for name in images if not _IMAGE_ID.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no identifier of an image")
    sections: Mapping[str, str] = {
        element.get("Label", ""): "".join(element.itertext()).strip() for element in root.iter("AbstractText")
    }
    mesh = tuple((element.text or "").strip() for element in root.iter("major"))
    return OpenIReport(uid, sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""), mesh, images)
