"""What ``--ckpt_path last``, ``best`` and ``last-or-new`` mean."""

from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only

from medvill_pl.runs import RunLogger, folder_of_run

_KINDS: dict[str, Literal["best", "last"]] = {"best": "best", "last": "last", "last-or-new": "last"}


def choose_checkpoint(verb: str, ckpt_path: str | Path | None, logger: RunLogger | None) -> str | Path | None:
    """Find the file that ``--ckpt_path`` means, and say which it is.

    ``last`` and ``best`` are those of the newest run of the logger's name. ``fit`` goes on with ``last`` in the folder
    of that run; ``last-or-new`` starts a run where there is none to go on with.

    Args:
        verb: the verb of the command.
        ckpt_path: what was given: a file, a word, or nothing.
        logger: knows the runs.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if the word means nothing here.
    """
    if ckpt_path is None or str(ckpt_path) not in _KINDS:
        return ckpt_path
    word = str(ckpt_path)
    if logger is None:
        raise ValueError(f"--ckpt_path {word} looks among the runs of a RunLogger, and there is none: give a file")
    if word == "last-or-new" and verb != "fit":
        raise ValueError(f"--ckpt_path last-or-new is for fit: give {verb} last, best or a file")
    checkpoint = logger.find_checkpoint(_KINDS[word])
    if checkpoint is None and word == "last-or-new":
        _say(f"no run in {logger.root_dir} to go on with: a new one starts")
        logger.go_on()
        return None
    if checkpoint is None:
        raise FileNotFoundError(
            f"no run in {logger.root_dir} has a {_KINDS[word]}.ckpt: give --ckpt_path a file, or train first"
        )
    _say(f"--ckpt_path {word}: {checkpoint}")
    if verb == "fit" and _KINDS[word] == "last":
        logger.go_on(folder_of_run(checkpoint))
    return checkpoint


@rank_zero_only
def _say(message: str) -> None:
    print(message)
