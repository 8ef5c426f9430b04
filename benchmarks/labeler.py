"""Compare the rule-based labeler with the original CheXpert labeler's labels of Open-I reports, and time it."""

import argparse
import csv
import json
import statistics
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvill_pl import FINDINGS, CheXpertLabeler

AIMS = {"positive micro F1": 0.95, "negative micro F1": 0.95, "positive macro F1": 0.88, "agreement": 0.97}
REPORTS_PER_SECOND_AIM = 500

Labels = NDArray[np.float32]


def xml_files(reports: Path) -> Iterator[bytes]:
    """The report files of a folder or a .tgz."""
    if reports.is_dir():
        yield from (path.read_bytes() for path in sorted(reports.rglob("*.xml")))
        return
    with tarfile.open(reports) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                yield file.read()


def read_texts(reports: Path) -> dict[str, str]:
    """Impression, a line break and findings of each report, by its uId: what the original labeler was given."""
    texts = {}
    for content in xml_files(reports):
        if b"<!ENTITY" in content:
            raise ValueError(f"{reports} has a file that defines entities")
        root = ET.fromstring(content)
        sections = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
        uid = root.find("uId")
        if uid is not None:
            texts[uid.attrib["id"]] = f"{sections.get('IMPRESSION', '')}\n{sections.get('FINDINGS', '')}"
    return texts


def read_labels(path: Path) -> dict[str, list[float]]:
    """The original labeler's labels, by uid."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["uid"]: [float(row[name] or "nan") for name in FINDINGS] for row in csv.DictReader(file)}


def f1(predicted: NDArray[np.bool_], original: NDArray[np.bool_]) -> float | None:
    """F1 of the original's cells; None where there are none in either."""
    num_cells = int(predicted.sum() + original.sum())
    return 2 * int((predicted & original).sum()) / num_cells if num_cells else None


def compare(predicted: Labels, original: Labels) -> dict[str, float | None]:
    """The figures that have aims."""
    same = (predicted == original) | (np.isnan(predicted) & np.isnan(original))
    per_finding = [f1(predicted[:, i] == 1, original[:, i] == 1) for i in range(len(FINDINGS))]
    return {
        "positive micro F1": f1(predicted == 1, original == 1),
        "negative micro F1": f1(predicted == 0, original == 0),
        "uncertain micro F1": f1(predicted == -1, original == -1),
        "positive macro F1": statistics.mean(score for score in per_finding if score is not None),
        "agreement": float(same.mean()),
    }


def by_finding(predicted: Labels, original: Labels) -> list[dict[str, Any]]:
    """F1 of each finding and state, and how many positives the original has."""
    rows = []
    for column, name in enumerate(FINDINGS):
        ours, theirs = predicted[:, column], original[:, column]
        scores = {state: f1(ours == value, theirs == value) for state, value in (("pos", 1), ("neg", 0), ("unc", -1))}
        rows.append({"finding": name, "positives": int((theirs == 1).sum()), **scores})
    return rows


def measure(texts: dict[str, str], labels: dict[str, list[float]]) -> dict[str, Any]:
    """Label all reports, with and without the original's faults."""
    uids = sorted(texts.keys() & labels.keys())
    original = np.array([labels[uid] for uid in uids], np.float32)
    reports = [texts[uid] for uid in uids]
    labeler = CheXpertLabeler()
    start = time.perf_counter()
    predicted = labeler(reports)
    seconds = time.perf_counter() - start
    return {
        "reports": len(uids),
        "reports_per_second": len(uids) / seconds,
        "as the original": compare(predicted, original),
        "without its faults": compare(CheXpertLabeler(imitate_faults=False)(reports), original),
        "by_finding": by_finding(predicted, original),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the tables."""
    columns = ["as the original", "without its faults"]
    print(f"rule-based CheXpert labeler against the original, {figures['reports']:,} reports\n")
    print(f"| figure | {' | '.join(columns)} | aim |\n| --- |{' ---: |' * 3}")
    for name in figures["as the original"]:
        values = " | ".join(_number(figures[column][name]) for column in columns)
        print(f"| {name} | {values} | {AIMS.get(name, '')} |")
    print("\n| finding | positives | F1 positive | F1 negative | F1 uncertain |\n| --- | ---: | ---: | ---: | ---: |")
    for row in figures["by_finding"]:
        scores = " | ".join(_number(row[state]) for state in ("pos", "neg", "unc"))
        print(f"| {row['finding']} | {row['positives']} | {scores} |")
    print(f"\n{figures['reports_per_second']:,.0f} reports/s on one core, aim {REPORTS_PER_SECOND_AIM}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, help="Open-I's NLMCXR_reports.tgz, or the folder it unpacks to")
    parser.add_argument("labels", type=Path, help="the original's labels: uid and the 14 findings, .csv")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = measure(read_texts(options.reports), read_labels(options.labels))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
