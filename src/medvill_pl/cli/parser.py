"""The parser of all verbs but the jobs."""

from argparse import ArgumentParser
from typing import NoReturn


class Parser(ArgumentParser):
    """Says what is wrong in one line.

    Example:
        >>> parser = Parser("medvill label")
        >>> _ = parser.add_argument("--column")
        >>> parser.parse_args(["--column", "impression"]).column
        'impression'
    """

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (--help shows the options)\n")


def add_labeler(parser: ArgumentParser) -> None:
    """Add the option that names a labeler."""
    parser.add_argument(
        "--labeler",
        default="medvill_pl.CheXpertLabeler",
        metavar="CLASS_PATH",
        help="class of the labeler (default: medvill_pl.CheXpertLabeler, which is rule-based)",
    )
