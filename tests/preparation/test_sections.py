"""Sections of reports, marks of de-identification, and XML that is not to be trusted."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvill_pl.labeler.chexpert import CheXpertLabeler
from medvill_pl.preparation.sections import (
    clean,
    image_id,
    longer,
    mimic_text,
    read_open_i_xml,
    split_sections,
)

FEW = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("No XXXX focal disease.", "No focal disease."),
        ("Chest x-XXXX. XXXX/granulomas. dual-XXXX pacemaker.", "Chest x. granulomas. dual pacemaker."),
        ("The aortic XXXX, XXXX, and heart (XXXX).", "The aortic, and heart."),
        ("XXXX, stable. XXXX's film.", "stable. film."),
        ("compared to ___, ___ effusion\n  on ___.", "compared to, effusion on."),
        ("Dr. ___ (___) was told at 3:45 p.m.", "Dr. was told at 3:45 p.m."),
        ("PICC ends 2.5 cm below; XX and xxxx stay.", "PICC ends 2.5 cm below; XX and xxxx stay."),
        ("XXXX ___ .", ""),
        ("", ""),
    ],
)
def test_marks_of_de_identification_are_taken_out(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("findings", "impression", "text"),
    [
        ("One two three.", "One two.", "One two three."),
        ("One two.", "One two three.", "One two three."),
        ("Same length.", "Equal length.", "Same length."),
        ("XXXX XXXX XXXX one.", "One two.", "One two."),
        ("", "Only one.", "Only one."),
    ],
)
def test_longer_section_counts_words_that_are_left(findings: str, impression: str, text: str) -> None:
    assert longer(findings, impression) == text


def test_report_without_either_section_is_refused() -> None:
    with pytest.raises(ValueError, match="neither findings nor an impression"):
        longer("XXXX.", "")


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  ___ year old woman with fever  // pneumonia?

 TECHNIQUE:  Single AP view of the chest.

 FINDINGS:

 AP chest compared to ___ at 4:32 a.m.: Heart is mildly enlarged.
 There is no effusion.

 IMPRESSION:  Mild cardiomegaly.

 NOTIFICATION:  Dr. ___ was paged.
"""


def test_sections_of_a_report() -> None:
    assert split_sections(REPORT) == {
        "findings": "AP chest compared to ___ at 4:32 a.m.: Heart is mildly enlarged.\n There is no effusion.",
        "impression": "Mild cardiomegaly.",
    }
    assert mimic_text(REPORT) == "AP chest compared to at 4:32 a.m.: Heart is mildly enlarged. There is no effusion."


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("FINDINGS AND IMPRESSION: Clear.", {"findings": "Clear."}),
        ("IMPRESSION: Clear.\n RECOMMENDATION(S): A CT.", {"impression": "Clear."}),
        ("CONCLUSION: Clear.", {"impression": "Clear."}),
        ("Impression:\nClear.", {"impression": "Clear."}),
        (
            "PA AND LATERAL VIEWS OF THE CHEST: Clear.\nIMPRESSION: Normal.",
            {"findings": "Clear.", "impression": "Normal."},
        ),
        ("FINDINGS:\nCHEST: Clear.\nFINDINGS: Stable.", {"findings": "Clear.\n Stable."}),
        ("HISTORY OF CHEST PAIN: Yes.", {}),
        ("WET READ: 9:00 PM\nFINDINGS: Early.\n____\n  FINAL REPORT\nIMPRESSION: Late.", {"impression": "Late."}),
        ("CHEST 2 VIEWS: not a heading.", {}),
        ("Lungs: clear.", {}),
        ("", {}),
    ],
)
def test_headings(report: str, sections: dict[str, str]) -> None:
    assert split_sections(report) == sections


XML = (
    '<?xml version="1.0"?><eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">The <b>heart</b> is big.'
    '</AbstractText><AbstractText Label="IMPRESSION">Big.</AbstractText><MeSH><major>Cardiomegaly/mild</major>'
    '<automatic>x</automatic></MeSH><parentImage id="CXR7_7_IM-0001-1001"/><parentImage id="CXR7_IM-0001-0001-0002"/>'
    "</eCitation>"
)


def test_xml_report() -> None:
    report = read_open_i_xml(XML.encode())
    assert (report.uid, report.images) == ("CXR7", ("CXR7_IM-0001-1001", "CXR7_IM-0001-0001-0002"))
    assert report.text == "The heart is big."
    assert report.labeler_input == "Big.\nThe heart is big."
    assert report.mesh_input == "Cardiomegaly mild."


def test_names_of_images_are_one() -> None:
    names = ("CXR12_IM-0003-1001", "12_IM-0003-1001", "CXR12_12_IM-0003-1001")
    assert {image_id(name) for name in names} == {"CXR12_IM-0003-1001"}
    assert image_id("CXR1_12_IM-0003-1001") == "CXR1_12_IM-0003-1001"


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f"<!DOCTYPE x [<!ENTITY e0 'ha'>{ENTITIES}]><eCitation><uId id='CXR1'/>&e9;</eCitation>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "DTDForbidden"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>', "DTDForbidden"),
        ('<!DOCTYPE x SYSTEM "http://localhost/x.dtd"><x/>', "DTDForbidden"),
        ("<eCitation>", "no element found"),
        ("", "no element found"),
        ('<?xml version="1.0" encoding="no-such"?><x/>', "not a readable XML file"),
        ("<x/>", "its uId is ''"),
        ('<x><uId id="../CXR1"/></x>', "its uId is '../CXR1'"),
        (XML.replace("CXR7_7_IM-0001-1001", "../../etc/passwd"), "'../../etc/passwd' is no identifier of an image"),
    ],
    ids=range(9),
)
def test_xml_that_is_refused(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        read_open_i_xml(content.encode())


def refusal_of(content: bytes) -> str | None:
    """What the reader says against an XML file; None if it reads it."""
    try:
        read_open_i_xml(content)
    except ValueError as error:
        return str(error)
    return None


WORDS = st.sampled_from(
    [
        "FINDINGS:",
        "IMPRESSION:",
        "FINAL REPORT",
        "CHEST:",
        "___",
        "XXXX",
        "(",
        ")",
        "\n",
        "\t",
        ":",
        "edema",
        "no",
        "-",
        "'s",
        ".",
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=60).map(" ".join), st.lists(WORDS).map("".join))


@FEW
@given(TEXTS)
def test_no_report_makes_the_parser_crash(report: str) -> None:
    sections = split_sections(report)
    assert set(sections) <= {"findings", "impression"}
    assert clean(clean(report)) == clean(report)
    assert "\n" not in clean(report)
    assert "XXXX" not in clean(report)
    assert "__" not in clean(report)


@FEW
@given(
    st.one_of(st.binary(max_size=300), TEXTS.map(str.encode), st.integers(0, len(XML)).map(lambda n: XML[:n].encode()))
)
def test_no_xml_makes_the_reader_crash(content: bytes) -> None:
    message = refusal_of(content)
    assert message is None or (message and "\n" not in message)


@FEW
@given(st.integers(0, len(XML) - 1), st.integers(0, 255))
def test_no_changed_byte_makes_the_reader_crash(index: int, byte: int) -> None:
    content = bytearray(XML.encode())
    content[index] = byte
    message = refusal_of(bytes(content))
    assert message is None or (message and "\n" not in message)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=3))
def test_no_text_makes_the_labeler_crash(texts: list[str]) -> None:
    assert LABELER(texts).shape == (len(texts), 14)


LABELER = CheXpertLabeler()


def test_every_report_of_open_i_is_read(shared_data: Path) -> None:
    from medvill_pl.preparation.open_i import read_open_i_reports

    reports, broken = read_open_i_reports(shared_data / "openi_reports/NLMCXR_reports.tgz")
    assert (len(reports), len(broken)) == (3955, 0)
    assert sum(bool(report.images) for report in reports) == 3851
    images = [image for report in reports for image in report.images]
    assert len(images) == len(set(images)) == 7470
