"""Jobs: recipes run by LightningCLI, alone or under a launcher."""

import os
import sys
import warnings

from medvill_pl.cli.argument_order import read_words
from medvill_pl.cli.help import job_help


def run(verb: str, options: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""
    if {"-h", "--help"} & set(options):
        print(job_help(verb), end="")
        return
    words = read_words(options)  # what is wrong with them is said before the imports, which take seconds
    sys.path.append(os.getcwd())  # a class_path may name a module beside the recipe

    from medvill_pl.cli.job_cli import JobCLI
    from medvill_pl.cli.quiet import quieten

    arguments = ["--help" if word == "--help-all" else word for word in words.arguments()]
    with warnings.catch_warnings():
        quieten()
        words.import_named()
        JobCLI(verb, arguments, words.name())
