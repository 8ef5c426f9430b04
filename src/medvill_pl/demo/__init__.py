"""The demo: pre-training and the four tasks on the embedded corpus, in minutes, and a page of what was learnt.

It uses what the library offers to anyone: data modules, tasks, trainers, and the functions of evaluation.
"""

import warnings
from pathlib import Path

from lightning.pytorch import seed_everything

from medvill_pl.demo.settings import DEFAULT, FULL, Budget

__all__ = ["DEFAULT", "FULL", "Budget", "run"]


def run(output: Path, seed: int = 0, budget: Budget = DEFAULT) -> None:
    """Pre-train, fine-tune and test all tasks, and write ``report.html``, the results and the backbone.

    Args:
        output: folder to write to.
        seed: seed of weights, order and masking.
        budget: how much to do; by default what takes 2 cores 6 to 7 minutes.

    Raises:
        OSError: if the folder cannot be written to.
    """
    from medvill_pl.demo.page import summary, write_report_page
    from medvill_pl.demo.story import tell
    from medvill_pl.demo.workers import be_quiet

    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        be_quiet()
        seed_everything(seed, verbose=False)
        story = tell(output, seed, budget)
    write_report_page(output / "report.html", story)
    print(f"{summary(story)}\n{sum(story.seconds.values()) / 60:.1f} minutes: open {output / 'report.html'}")
