"""``medvill demo``: all tasks on the embedded corpus, shown on one page."""

import os
from pathlib import Path

from medvill_pl.cli.parser import Parser


def run(verb: str, options: list[str]) -> None:
    """Run the demo."""
    parser = Parser(
        f"medvill {verb}", description="Pre-train on the embedded corpus, fine-tune and test all tasks, and show it."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder to write report.html to (default: demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and masking (default: 0)")
    parser.add_argument("--full", action="store_true", help="train longer on more images, for better figures")
    chosen = parser.parse_args(options)

    # Else PyTorch's threads wait for each other in busy loops, and anything else that runs slows the demo many times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from medvill_pl.demo import DEFAULT, FULL
    from medvill_pl.demo import run as run_demo

    run_demo(chosen.output, chosen.seed, FULL if chosen.full else DEFAULT)
