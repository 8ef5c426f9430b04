"""The command ``medvill``: a table of verbs, each imported when it is asked for."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import medvill_pl


class _Verb(NamedTuple):
    """A verb: the module of this package that runs it, and what it does in one line."""

    module: str
    summary: str


_VERBS = {
    "fit": _Verb("jobs", "train a task by a recipe"),
    "validate": _Verb("jobs", "score a checkpoint on the validation split"),
    "test": _Verb("jobs", "score a checkpoint on the test split"),
    "predict": _Verb("jobs", "write a table of predictions for the test split"),
    "recipes": _Verb("recipes", "list the recipes that come with the package, or copy them to a folder"),
    "prepare": _Verb("prepare", "prepare MIMIC-CXR, Open-I, VQA-RAD or your own pairs as a corpus"),
    "describe": _Verb("describe", "print and draw what is in a corpus"),
    "tokenizer": _Verb("tokenizer", "train a WordPiece vocabulary on the reports of a corpus"),
    "label": _Verb("label", "label reports with the 14 CheXpert observations"),
    "demo": _Verb("demo", "pre-train and test all tasks on the embedded corpus and show it on a page"),
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
        run: Callable[[str, list[str]], None] = import_module(f"medvill_pl.cli.{_VERBS[verb].module}").run
        run(verb, options)
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
