"""Time how long it takes to import the package, to show help and to start a job, in fresh processes."""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

BARE = "python -c pass"
AIMS = {
    "import medvill_pl": 0.3,
    "medvill --help": 1.5,
    "medvill fit --help": 1.5,
    "medvill prepare --help": 1.5,
    "medvill recipes": 1.5,
    "medvill fit -c RECIPE --print_config": 3.0,
}  # seconds above the bare interpreter


def commands() -> dict[str, list[str]]:
    """The commands to time, of this interpreter's environment."""
    medvill = shutil.which("medvill", path=sysconfig.get_path("scripts")) or "medvill"
    return {
        BARE: [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import lightning.pytorch": [sys.executable, "-c", "import lightning.pytorch"],  # what no job can do without
        "import medvill_pl": [sys.executable, "-c", "import medvill_pl"],
        "medvill --help": [medvill, "--help"],
        "medvill fit --help": [medvill, "fit", "--help"],
        "medvill prepare --help": [medvill, "prepare", "--help"],
        "medvill recipes": [medvill, "recipes"],
        "medvill fit -c RECIPE --print_config": [medvill, "fit", "-c", "pretraining/synthetic.yaml", "--print_config"],
    }


def run(command: list[str]) -> float | None:
    """Run a command and return its wall time in seconds; None if it fails."""
    start = time.perf_counter()
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return time.perf_counter() - start


def measure(rounds: int) -> list[dict[str, Any]]:
    """Time the commands in turn, so that a slow minute slows them all; a first round only fills the caches."""
    timed = commands()
    turns = [{name: run(command) for name, command in timed.items()} for _ in range(rounds + 1)][1:]
    bare = statistics.median(turn[BARE] for turn in turns)
    rows = []
    for name in timed:
        seconds = [turn[name] for turn in turns]
        median = None if None in seconds else statistics.median(seconds)
        above = None if median is None else median - bare
        rows.append({"command": name, "seconds": median, "above_bare": above, "aim": AIMS.get(name)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("| command | seconds | above the bare interpreter | aim |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        name, aim = row["command"], f"< {row['aim']}" if row["aim"] else ""
        figures = "fails | " if row["seconds"] is None else f"{row['seconds']:.3f} | {row['above_bare']:.3f}"
        print(f"| `{name}` | {figures} | {aim} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes a command, of which the median counts")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the figures there")
    options = parser.parse_args()
    rows = measure(options.rounds)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
