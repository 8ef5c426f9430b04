"""Where pre-trained weights come from: a name, a local path or the hub, each failure one clear line."""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn


def looks_like_path(source: str) -> bool:
    """Tell a path from a name: it exists, or has a file's ending, or more parts than ``owner/name``.

    Example:
        >>> [looks_like_path(source) for source in ("IMAGENET1K_V2", "owner/name", "./name", "weights.pth")]
        [False, False, True, True]
    """
    return Path(source).exists() or Path(source).suffix != "" or source.count("/") > 1 or source.startswith((".", "/"))


def fetch(source: str, filenames: tuple[str, ...], what: str, **hub: Any) -> Path:
    """Find a file by path, in a folder, or in a repository of the Hugging Face hub.

    Args:
        source: a file, a folder that holds one of ``filenames``, or a hub name.
        filenames: the names to look for; the first that is there counts.
        what: what the file is, for messages, such as ``"tokenizer"``.
        hub: what ``hf_hub_download`` takes: ``revision``, ``token``, ``cache_dir``, ...

    Returns:
        The path of the local (or downloaded) file.

    Raises:
        FileNotFoundError: if nothing is there, or the hub cannot be reached.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "vocab.txt").write_text("[PAD]")
        ...     fetch(folder, ("tokenizer.json", "vocab.txt"), "tokenizer").name
        'vocab.txt'
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for filename in filenames:
            if (path / filename).is_file():
                return path / filename
        raise FileNotFoundError(f"{what}: the folder {source} holds no {' or '.join(filenames)}")
    if looks_like_path(source):
        raise FileNotFoundError(f"{what}: no such file or folder: {source}")
    for filename in filenames:
        try:
            return Path(hf_hub_download(source, filename, **hub))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            continue
    raise FileNotFoundError(
        f"{what}: {source!r} is no local path and could not be fetched from the Hugging Face hub (no such name, or the "
        f"hub is out of reach): download {filenames[0]} where there is a network and give its path instead"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or one that ``torch.save`` wrote.

    Raises:
        ValueError: if the file holds no state dict, or is broken.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(nn.Linear(2, 1).state_dict(), f"{folder}/linear.pth")
        ...     list(read_state_dict(Path(folder, "linear.pth")))
        ['weight', 'bias']
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for broken bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return loaded


def torchvision_state_dict(architecture: str, name: str) -> dict[str, Tensor]:
    """Download (or take from torch's cache) the weights that torchvision publishes under a name.

    Args:
        architecture: such as ``"resnet50"``.
        name: such as ``"IMAGENET1K_V2"`` or ``"DEFAULT"``.

    Raises:
        ValueError: if torchvision has no weights of that name for the architecture.
        FileNotFoundError: if they cannot be downloaded.
    """
    from torchvision.models import get_model_weights, list_models

    if architecture not in list_models():
        raise ValueError(
            f"image_encoder_weights: torchvision has no {architecture}: give a path instead of {name!r}, or none"
        )
    published = get_model_weights(architecture)
    if name not in published.__members__:
        names = ", ".join(published.__members__)
        raise ValueError(
            f"image_encoder_weights: {name!r} is no local path, and torchvision has {names} for {architecture}"
        )
    weights = published[name]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"image_encoder_weights: {name} of {architecture} could not be downloaded ({error}): fetch {weights.url} "
            f"where there is a network and give its path, or set image_encoder_weights to none"
        ) from error
    # DenseNet's files have names that torchvision itself mends when it loads them.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str, optional: tuple[str, ...] = ()) -> None:
    """Load a state dict into a module, or say in one line how they differ.

    Args:
        module: takes the weights.
        state: tensors by name; further names are an error unless they begin with one of ``optional``.
        source: where the weights come from, for the message.
        optional: beginnings of names that either side may lack or have in another shape.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape.

    Example:
        >>> load_exactly(nn.Linear(2, 1), {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, "linear.pth")
        Traceback (most recent call last):
        ValueError: the weights in linear.pth do not fit Linear: weight is (1, 3) there and (1, 2) here
    """
    expected = module.state_dict()
    is_optional = {
        name: name.startswith(optional) or name.endswith("num_batches_tracked") for name in {*expected, *state}
    }
    state = {
        name: tensor
        for name, tensor in state.items()
        if not is_optional[name] or (name in expected and expected[name].shape == tensor.shape)
    }
    problems = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [f"{name} is missing there" for name in expected if name not in state and not is_optional[name]]
    problems += [f"{name} is unknown here" for name in state if name not in expected]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise ValueError(f"the weights in {source} do not fit {type(module).__name__}: {problems[0]}{more}")
    module.load_state_dict(state, strict=False)
