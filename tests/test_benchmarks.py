"""Tests that the benchmarks run, at sizes of seconds; what they measure is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, str(ROOT / "benchmarks/startup.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "import medvill_pl" in done.stdout
    assert "medvill --help" in done.stdout
