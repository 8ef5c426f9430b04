"""Tests that the benchmarks run, at sizes of seconds; what they measure is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medvill_pl import FINDINGS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_pretraining_step_compares_every_cause(tmp_path: Path) -> None:
    script, out = ROOT / "benchmarks/pretraining_step.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--small", "--device", "cpu", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "speed-up" in done.stdout
    assert json.loads(out.read_text())


@pytest.mark.slow
def test_startup_prints_both_figures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/startup.py"), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "import medvill_pl" in done.stdout
    assert "medvill --help" in done.stdout


@pytest.mark.slow
def test_labeler_is_compared_with_given_labels(tmp_path: Path) -> None:
    reports, labels, out = tmp_path / "reports", tmp_path / "labels.csv", tmp_path / "figures.json"
    reports.mkdir()
    texts = {"R1": ("Small effusion.", "No pneumothorax."), "R2": ("Clear lungs.", "Normal heart size.")}
    for uid, (impression, findings) in texts.items():
        parts = f'<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}'
        (reports / f"{uid}.xml").write_text(f'<eCitation><uId id="{uid}"/>{parts}</AbstractText></eCitation>')
    cells = {"R1": {"Pneumothorax": "0", "Pleural Effusion": "1"}, "R2": {"No Finding": "1", "Cardiomegaly": "1"}}
    lines = [",".join(["uid", *FINDINGS])]
    lines += [",".join([uid, *(row.get(finding, "") for finding in FINDINGS)]) for uid, row in cells.items()]
    labels.write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(ROOT / "benchmarks/labeler.py"), str(reports), str(labels), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "rule-based" in done.stdout
    figures = json.loads(out.read_text())
    assert figures["reports"] == 2
    # One of 28 cells differs: heart size is said to be normal.
    assert figures["as the original"]["agreement"] == pytest.approx(27 / 28)
    assert figures["as the original"]["positive micro F1"] == pytest.approx(0.8)


@pytest.mark.slow
def test_generation_is_compared_with_decoding_anew(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks/generation.py"), "--small", "--device", "cpu"]
    command += ["--tokens", "5", "--batch", "1", "3", "--rounds", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "both ways wrote the same" in done.stdout
    rows = json.loads(out.read_text())["rows"]
    ways = ("plain, float32", "cached, float32", "cached, bfloat16")
    assert [(row["batch"], row["way"]) for row in rows] == [(batch, way) for batch in (1, 3) for way in ways]
    for row in rows:
        assert row["reports_per_second"] == pytest.approx(row["batch"] / row["seconds"])


@pytest.mark.slow
def test_perplexity_is_compared_with_n_passes(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks/perplexity.py"), "--small", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--reports", "3", "--passes", "4", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "speed-up in float32" in done.stdout
    figures = json.loads(out.read_text())
    assert 0 <= figures["largest_difference"] < 1e-4
    assert [row["way"] for row in figures["rows"]] == [
        "N passes, float32",
        "one pass, float32",
        "one pass, bfloat16, batch 3",
    ]


@pytest.mark.slow
def test_retrieval_is_compared_with_encoding_every_pair(tmp_path: Path) -> None:
    script, out = ROOT / "benchmarks/retrieval.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--small", "--device", "cpu", "--batches", "2", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "of it, aim 90%" in done.stdout
    figures = json.loads(out.read_text())
    assert figures["timed_pairs"] == 32
    per_pair = figures["seconds_per_pair"]
    assert figures["speed_up"]["plain"] == pytest.approx(per_pair["plain"] / per_pair["ours"])
    assert figures["bound"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "loading"])
def test_data_is_compared_with_bare_loops(name: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "share" in done.stdout
    figures = json.loads(out.read_text())
    rows = figures["rows"] if name == "prepare" else figures
    assert rows[0]["workers"] == 1
    assert all(row["share"] > 0 for row in rows)
