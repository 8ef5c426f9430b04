"""Time and memory of ``medvill prepare mimic-cxr`` on generated trees of several sizes, in MIMIC-CXR's own layout.

    python benchmarks/mimic_cxr_scale.py --studies 200 2000 20000

Linear time and flat memory are the aim: each size is prepared in a process of its own.
"""

import argparse
import csv
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from medvill_pl import FINDINGS

SENTENCES = (
    "The lungs are clear.",
    "There is no pneumothorax.",
    "A small left pleural effusion is unchanged since ___.",
    "The heart is mildly enlarged.",
    "Right internal jugular line ends in the superior vena cava.",
    "Low lung volumes accentuate the bronchovascular markings.",
)
VIEWS = ("AP", "AP", "PA", "LATERAL", "LL", "")


def report_of(rng: Random) -> str:
    """A free-text report as MIMIC-CXR lays it out."""
    findings = " ".join(rng.sample(SENTENCES, rng.randint(2, 5)))
    impression = rng.choice(SENTENCES)
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PORTABLE AP)\n \n"
        " INDICATION:  ___ year old man with fever  // pneumonia?\n \n"
        f" FINDINGS: \n \n {findings}\n \n IMPRESSION: \n \n {impression}\n"
    )


def write_tree(root: Path, studies: int, side: int = 64, zipped: bool = True, seed: int = 0) -> None:
    """Write this many studies of generated images, with the folders, file names and tables of MIMIC-CXR-JPG.

    Args:
        root: the folder to make.
        studies: how many; every other patient has two.
        side: shorter side of the images in pixels.
        zipped: the reports as ``mimic-cxr-reports.zip``; False lays them out as files.
        seed: seed of all of it.
    """
    rng, noise = Random(seed), np.random.default_rng(seed)
    root.mkdir(parents=True)
    metadata, splits, labels = [], [], []
    reports = zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") if zipped else None
    for number in range(studies):
        patient = 10_000_000 + number * 2 // 3 * 431
        study = 50_000_000 + number
        folder = Path(f"files/p{str(patient)[:2]}/p{patient}")
        (root / folder / f"s{study}").mkdir(parents=True, exist_ok=True)
        split = ("train", "train", "train", "train", "validate", "test")[patient % 6]
        for _ in range(rng.randint(1, 2)):
            digits = uuid.UUID(int=rng.getrandbits(128)).hex + f"{rng.getrandbits(32):08x}"
            dicom = "-".join(digits[start : start + 8] for start in range(0, 40, 8))
            pixels = noise.integers(0, 256, (side + rng.randint(0, 16), side), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"s{study}" / f"{dicom}.jpg")
            metadata.append([dicom, patient, study, rng.choice(VIEWS)])
            splits.append([dicom, study, patient, split])
        labels.append([patient, study, *(rng.choice(("", "", "1.0", "0.0", "-1.0")) for _ in FINDINGS)])
        if reports:
            reports.writestr(f"{folder}/s{study}.txt", report_of(rng))
        else:
            (root / folder / f"s{study}.txt").write_text(report_of(rng))
    if reports:
        reports.close()
    _write_table(root, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"], metadata)
    _write_table(root, "split", ["dicom_id", "study_id", "subject_id", "split"], splits)
    _write_table(root, "chexpert", ["subject_id", "study_id", *FINDINGS], labels)


def _write_table(root: Path, name: str, header: list[str], rows: list[list[object]]) -> None:
    with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def measure(root: Path, output: Path, image_size: int) -> dict[str, float]:
    """Prepare a tree in this process and return rows, seconds and peak memory in MiB, before and after."""
    from medvill_pl.preparation.mimic_cxr import prepare_mimic_cxr

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    summary = prepare_mimic_cxr(root, output, image_size=image_size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": sum(summary.rows.values()), "seconds": seconds, "MiB at start": before, "MiB at peak": peak}


def main() -> None:
    """Measure every size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs="+", default=[200, 2000, 20000])
    parser.add_argument("--side", type=int, default=64, help="shorter side of the generated images in pixels")
    parser.add_argument("--image-size", type=int, default=64, help="side of the prepared images in pixels")
    parser.add_argument("--tree", type=Path, help="prepare this tree in this process and print its figures as JSON")
    parser.add_argument("--folder", type=Path, help="where to write the trees (default: a temporary folder)")
    chosen = parser.parse_args()
    if chosen.tree:
        print(json.dumps(measure(chosen.tree, chosen.tree.with_name("corpus"), chosen.image_size)))
        return
    print("studies    rows  seconds    ms/row  MiB at start  MiB at peak")
    for studies in chosen.studies:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            tree = Path(folder) / "tree"
            write_tree(tree, studies, chosen.side)
            command = [sys.executable, __file__, "--tree", str(tree), "--image-size", str(chosen.image_size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
        rows, seconds = measured["rows"], measured["seconds"]
        print(
            f"{studies:>7,} {rows:>7,} {seconds:>8.1f} {1000 * seconds / rows:>9.2f} "
            f"{measured['MiB at start']:>13.0f} {measured['MiB at peak']:>12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
