"""``medvill describe``: what is in a corpus."""

from pathlib import Path

from medvill_pl.cli.parser import Parser


def run(verb: str, options: list[str]) -> None:
    """Print and draw what is in one corpus, or in two side by side."""
    parser = Parser(f"medvill {verb}", description="Print and draw what is in one corpus, or in two side by side.")
    parser.add_argument("corpus", type=Path, help="folder of a prepared corpus")
    parser.add_argument("other", type=Path, nargs="?", help="folder of another one")
    parser.add_argument(
        "--output", type=Path, help="page to write (default: describe.html in the folder of the corpus)"
    )
    chosen = parser.parse_args(options)

    from medvill_pl.preparation.describe import describe

    output = chosen.output or chosen.corpus / "describe.html"
    for summary in describe([folder for folder in (chosen.corpus, chosen.other) if folder], output):
        print("\n".join(summary.lines()), end="\n\n")
    print(f"pictures are in {output}")
