"""Checkpoints of tasks: what they hold, how two configurations differ, and names that earlier versions used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvill_pl.models.medvill import MedViLL
from medvill_pl.models.old_names import rename_backbone_arguments, rename_state_dict
from medvill_pl.tokenizer import ReportTokenizer
from medvill_pl.weights import load_exactly

_ARCHITECTURE = (
    "image_encoder",
    "image_size",
    "max_tokens",
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
)
"""The arguments of a backbone, besides the tokenizer, that its weights depend on."""
_RENAMED = {"whole_pool": "full_gallery", "trial_seed": "candidate_seed"}
_RENAMED_DECODING = {"max_words": "max_new_tokens", "min_words": "min_new_tokens"}


def read_checkpoint(source: str, what: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read the checkpoint of a task; only tensors and plain values are read from it.

    Args:
        source: path of the file.
        what: what it is to the user, for messages, such as ``backbone_ckpt``.
        map_location: where the tensors go, as ``torch.load`` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it was not written by a task of this library.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"{what}: no such file: {source}")
    try:
        checkpoint = torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:  # each kind of broken file has its own
        raise ValueError(f"{what}: {source} was not written by a medvill_pl task") from error
    return renamed(checkpoint, f"{what}: {source}")


def renamed(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A checkpoint with the names of this version, whichever version wrote it.

    Raises:
        ValueError: if it lacks what every task writes.
    """
    hyperparameters = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, Mapping) else {}
    if "backbone" not in hyperparameters or "trained_on" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"{source} was not written by a medvill_pl task")
    arguments = {_RENAMED.get(name, name): value for name, value in hyperparameters.items()}
    arguments["backbone"] = rename_backbone_arguments(arguments["backbone"])
    if arguments.get("decoding"):
        arguments["decoding"] = {_RENAMED_DECODING.get(k, k): value for k, value in arguments["decoding"].items()}
    prefix, weights = "backbone.", checkpoint["state_dict"]
    backbone = rename_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    others = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    state = {f"{prefix}{name}": weight for name, weight in backbone.items()} | others
    return {**checkpoint, "hyper_parameters": arguments, "state_dict": state}


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], backbone: MedViLL, fixed: tuple[str, ...]
) -> list[str]:
    """Say in what two configurations differ that their weights, inputs or heads depend on.

    Args:
        theirs: hyper-parameters of a checkpoint, with the backbone's arguments as ``backbone``.
        ours: hyper-parameters of a task.
        backbone: the task's.
        fixed: names of further hyper-parameters that must agree, where both have them.
    """
    built, config = theirs["backbone"], backbone.config()
    pairs = [(name, built.get(name), config.get(name)) for name in _ARCHITECTURE]
    pairs += [(name, theirs[name], ours[name]) for name in fixed if name in theirs and name in ours]
    changed = [f"{name} is {there} there and {here} here" for name, there, here in pairs if there != here]
    if built["tokenizer"] != config["tokenizer"] and ReportTokenizer.load(built["tokenizer"]) != backbone.tokenizer:
        changed.append("the tokenizer is another")
    return changed


def heads(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names and shapes of what a task adds to its backbone."""
    return {name: weight.shape for name, weight in weights.items() if not name.startswith("backbone.")}


def load_backbone(source: str) -> MedViLL:
    """Load a pre-trained backbone.

    Args:
        source: a task's checkpoint (``.ckpt``), a folder that ``save_pretrained`` wrote, or a hub name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is no task's checkpoint.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> MedViLL(image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic", hidden_size=32, num_layers=1,
        ...         num_heads=2, intermediate_size=64).save_pretrained(folder)
        >>> load_backbone(folder).num_visual
        16
    """
    if not source.endswith(".ckpt"):
        return MedViLL.from_pretrained(source)
    checkpoint = read_checkpoint(source, "backbone_ckpt")
    backbone = MedViLL(**checkpoint["hyper_parameters"]["backbone"])
    prefix = "backbone."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    load_exactly(backbone, weights, source)
    backbone.trained_on = list(checkpoint["trained_on"])
    return backbone
