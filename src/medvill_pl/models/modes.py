"""Evaluation mode for a while, and every module's own mode again afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts in evaluation mode, and each back in its own, also after an error.

    Args:
        module: the modes of its parts may differ, as those of frozen ones do.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
        >>> _ = model[0].eval()
        >>> with evaluating(model):
        ...     print([part.training for part in model])
        [False, False]
        >>> [part.training for part in model]
        [False, True]
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training  # not train(), which would set the parts of the part too
