"""The command ``medvill``: a table of verbs, each imported when it is asked for."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import medvill_pl


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows the options)\n")


def _job(verb: str, options: list[str]) -> None:
    from medvill_pl.cli.jobs import run

    run(verb, options)


def _tokenizer(verb: str, options: list[str]) -> None:
    parser = _Parser(f"medvill {verb}", description="Learn a WordPiece vocabulary from reports.")
    parser.add_argument("action", choices=["train"])
    parser.add_argument("corpus", help="a prepared corpus (its training split is read), or a .csv, .jsonl or .parquet")
    parser.add_argument("output", type=Path, help="folder to write tokenizer.json and vocab.txt to")
    parser.add_argument("--report-column", default="report", help="column with the text (default: report)")
    parser.add_argument("--vocab-size", type=int, default=30522, help="most tokens to learn (default: 30522, as BERT)")
    parser.add_argument("--min-frequency", type=int, default=2, help="rarest pair of pieces to join (default: 2)")
    chosen = parser.parse_args(options)

    from medvill_pl.data.pairs import read_reports
    from medvill_pl.tokenizer import ReportTokenizer

    if chosen.output.exists():
        raise FileExistsError(f"{chosen.output} is there already: move it away or choose another folder")
    reports = read_reports(Path(chosen.corpus), chosen.report_column)
    tokenizer = ReportTokenizer.train(reports, chosen.vocab_size, chosen.min_frequency)
    tokenizer.save(chosen.output)
    print(f"{tokenizer.vocab_size:,} tokens from {len(reports):,} reports are in {chosen.output}")


def _label(verb: str, options: list[str]) -> None:
    parser = _Parser(f"medvill {verb}", description="Label reports with the 14 CheXpert observations.")
    parser.add_argument("table", type=Path, help="a .csv, .jsonl or .parquet with a report a row")
    parser.add_argument("--column", default="report", help="column with the text (default: report)")
    parser.add_argument("--output", type=Path, required=True, help="table to write: all columns and 14 more, as .csv")
    parser.add_argument("--explain", action="store_true", help="add a column with the evidence behind each label")
    parser.add_argument(
        "--labeler",
        default="medvill_pl.CheXpertLabeler",
        metavar="CLASS_PATH",
        help="class of the labeler (default: medvill_pl.CheXpertLabeler, which is rule-based)",
    )
    chosen = parser.parse_args(options)

    from medvill_pl.data.pairs import read_reports, read_table
    from medvill_pl.labeler.base import load_labeler
    from medvill_pl.labeler.table import label_table

    if chosen.output.exists():
        raise FileExistsError(f"{chosen.output} is there already: move it away or choose another file")
    labeler = load_labeler(chosen.labeler)
    texts = read_reports(chosen.table, chosen.column)
    label_table(read_table(chosen.table), texts, labeler, chosen.output, chosen.explain)
    print(f"{chosen.output} has the labels of {len(texts):,} reports by the {labeler.name}")
    if num_empty := texts.count(""):
        print(f"empty texts: {num_empty:,}")


def _prepare(verb: str, options: list[str]) -> None:
    parser = _Parser(f"medvill {verb}", description="From a dataset as its publisher ships it to a corpus folder.")
    from medvill_pl.preparation.command import add_arguments, run

    add_arguments(parser)
    run(parser.parse_args(options))


def _describe(verb: str, options: list[str]) -> None:
    parser = _Parser(f"medvill {verb}", description="Print and draw what is in one corpus, or in two side by side.")
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


def _demo(verb: str, options: list[str]) -> None:
    parser = _Parser(
        f"medvill {verb}", description="Pre-train on the embedded corpus, fine-tune and test all tasks, and show it."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder to write report.html to (default: demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and masking (default: 0)")
    parser.add_argument("--full", action="store_true", help="train longer on more films, for better figures")
    chosen = parser.parse_args(options)

    # Else PyTorch's threads wait for each other in busy loops, and anything else that runs slows the demo many times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from medvill_pl.demo import DEFAULT, FULL, run

    run(chosen.output, chosen.seed, FULL if chosen.full else DEFAULT)


class _Verb(NamedTuple):
    run: Callable[[str, list[str]], None]
    summary: str


_VERBS = {
    "fit": _Verb(_job, "train a task by a recipe"),
    "validate": _Verb(_job, "score a checkpoint on the validation split"),
    "test": _Verb(_job, "score a checkpoint on the test split"),
    "predict": _Verb(_job, "write a table of predictions for the test split"),
    "prepare": _Verb(_prepare, "prepare MIMIC-CXR, Open-I, VQA-RAD or your own pairs as a corpus"),
    "describe": _Verb(_describe, "print and draw what is in a corpus"),
    "tokenizer": _Verb(_tokenizer, "train a WordPiece vocabulary on the reports of a corpus"),
    "label": _Verb(_label, "label reports with the 14 CheXpert observations"),
    "demo": _Verb(_demo, "pre-train and test all tasks on the embedded corpus and show it on a page"),
}
_HELP = f"""usage: medvill VERB [OPTIONS]

Medical vision-language learning: MedViLL and its tasks. For research, not a medical device.

verbs:
{chr(10).join(f"  {name:<10} {verb.summary}" for name, verb in _VERBS.items())}

  medvill VERB --help   the options of a verb
  medvill --version     the version
  --traceback           with any verb: show where an error comes from (or set MEDVILL_TRACEBACK=1)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the command line without the program; by default that of the process.

    Returns:
        The exit code: 0, 1 for an error, 2 for a wrong command line, 130 if interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    wants_traceback = "--traceback" in words or bool(os.environ.get("MEDVILL_TRACEBACK"))
    words = [word for word in words if word != "--traceback"]
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if words[0] == "--version":
        print(medvill_pl.__version__)
        return 0
    verb, options = words[0], words[1:]
    if verb not in _VERBS:
        print(f"medvill: no verb {verb!r}: choose one of {', '.join(_VERBS)}", file=sys.stderr)
        return 2
    try:
        _VERBS[verb].run(verb, options)
    except KeyboardInterrupt:
        print(f"medvill {verb}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            raise
        print(f"medvill {verb}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    """An error as one line; the type is named where the message alone would say too little."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror}: {error.filename}"
    is_expected = isinstance(error, OSError | ValueError | RuntimeError)
    return text if is_expected and text else f"{type(error).__name__}: {text} (--traceback shows where)"
