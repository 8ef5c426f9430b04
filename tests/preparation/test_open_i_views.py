"""Which images of Open-I are frontal."""

import pytest

from medvill_pl.preparation.open_i_views import frontal_images, id_of_file, is_frontal_by_name, view_of
from medvill_pl.preparation.sections import OpenIReport


@pytest.mark.parametrize(
    ("image", "is_frontal"),
    [
        ("CXR1_IM-0001-1001", True),
        ("CXR1_IM-0001-2001", False),
        ("CXR1_IM-0001-4001", True),
        ("CXR1_IM-0001-4004", True),
        ("CXR1_IM-0001-1002", False),
        ("CXR1_IM-0001-3001", False),
        ("CXR1_IM-0001-0001-0001", True),
        ("CXR1_IM-0001-0001-0002", False),
        ("CXR1_IM-0001-1001-0002", False),
        ("CXR1_IM-0001-12012", False),
    ],
)
def test_rule_of_the_file_name(image: str, is_frontal: bool) -> None:
    assert is_frontal_by_name(image) is is_frontal


@pytest.mark.parametrize(
    ("given", "view"),
    [("PA", "PA"), ("AP", "AP"), ("frontal", "frontal"), ("LL", ""), ("Lateral", ""), ("", "frontal")],
)
def test_table_of_views_counts_before_the_name(given: str, view: str) -> None:
    assert view_of("CXR1_IM-0001-1001", {"CXR1_IM-0001-1001": given}) == view
    assert view_of("CXR1_IM-0001-2001", {"CXR1_IM-0001-2001": given}) == ("" if given == "" else view)


def test_image_that_table_and_name_agree_on_comes_first() -> None:
    images = tuple(f"CXR1_IM-0001-{number}" for number in (2001, 3001, 4001))
    report = OpenIReport("CXR1", "", "", (), images)
    assert frontal_images(report, dict.fromkeys(images, "PA")) == [images[2], images[0], images[1]]
    assert frontal_images(report, {}) == [images[2]]
    assert frontal_images(report, {images[2]: "LL"}) == []


def test_names_of_files_are_those_of_the_reports() -> None:
    for name in ("CXR2_IM-0652-1001.png", "2_IM-0652-1001.dcm.png", "a/b/2_IM-0652-1001.dcm", "CXR2_IM-0652-1001"):
        assert id_of_file(name) == "CXR2_IM-0652-1001"
