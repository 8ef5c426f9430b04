"""What a command keeps quiet about: the one place for filters of warnings."""

import logging
import warnings


def quieten() -> None:
    """Silence what Lightning says of things that are as they should be here, and its advertisements.

    What is left is said in one line each.
    """
    warnings.formatwarning = _one_line
    for message in (
        "LightningCLI's args parameter",
        ".*LeafSpec.*",
        ".*dataloader.*is not resumable.*",
        ".*does not have many workers.*",
        "This DataLoader will create",  # more workers than cores
        r"Found \d+ module\(s\) in eval mode",  # frozen ones
        "The dirpath has changed",
        "Couldn't infer the batch indices",
        "Precision bf16-mixed is not supported by the model summary",
        # a run that goes on in its folder
        "Experiment logs directory .* exists and is not empty",
        "Checkpoint directory .* exists and is not empty",
    ):
        warnings.filterwarnings("ignore", message=message)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


_ADVERTISEMENTS = ("Tip:", "`weights_only` was not set", "TPU available")


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in _ADVERTISEMENTS)
