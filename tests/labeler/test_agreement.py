"""Test of the agreement with the original labeler on real reports, where they are at hand."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_agreement_reaches_its_aims(shared_data: Path) -> None:
    benchmark = runpy.run_path(str(ROOT / "benchmarks/labeler.py"))
    texts = benchmark["read_texts"](shared_data / "openi_reports/NLMCXR_reports.tgz")
    labels = benchmark["read_labels"](shared_data / "openi_chexpert_labels_dev.csv")
    figures = benchmark["measure"](texts, labels)
    assert figures["reports"] == 2185
    for name, aim in benchmark["AIMS"].items():
        assert figures["as the original"][name] >= aim
