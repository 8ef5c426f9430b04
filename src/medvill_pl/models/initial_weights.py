"""Weights to start from: a CNN of torchvision for the image encoder, a BERT of transformers for the rest."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from torch import Tensor, nn

from medvill_pl.models.image_encoder import ImageEncoder, ImageEncoderName, make_cnn
from medvill_pl.models.old_names import rename_weight
from medvill_pl.weights import fetch, load_exactly, looks_like_path, read_state_dict, torchvision_state_dict

if TYPE_CHECKING:
    from medvill_pl.models.medvill import MedViLL

_STD, _WIDTH = 0.02, 768
"""Standard deviation of BERT's initial weights, and the width that it goes with."""
_SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
}
"""BERT's names of the sizes that both must have in common, and ours."""


def load_cnn(cnn: nn.Module, name: str, source: str) -> None:
    """Load the weights of a CNN that :func:`~medvill_pl.models.image_encoder.make_cnn` built.

    Args:
        cnn: takes the weights.
        name: its architecture, such as ``"resnet50"``.
        source: a name that torchvision gives weights (``IMAGENET1K_V2``), a local file, or a hub name (``owner/name``).

    Raises:
        FileNotFoundError: if there are no such weights, or they cannot be downloaded.
        ValueError: if they do not fit.

    Example:
        >>> import tempfile
        >>> from medvill_pl.models.image_encoder import make_cnn
        >>> saved, cnn = make_cnn("resnet_tiny"), make_cnn("resnet_tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(saved.state_dict(), f"{folder}/cnn.pth")
        ...     load_cnn(cnn, "resnet_tiny", f"{folder}/cnn.pth")
        >>> torch.equal(cnn.stem[0].weight, saved.stem[0].weight)
        True
    """
    if looks_like_path(source) or "/" in source:
        state = read_state_dict(fetch(source, (SAFETENSORS_SINGLE_FILE, "pytorch_model.bin"), "image_encoder_weights"))
    else:
        state = torchvision_state_dict(name, source)
    load_exactly(cnn, state, source, optional=("fc.", "classifier."))


def make_image_encoder(
    name: ImageEncoderName, image_size: int, weights: str | None, frozen_stages: int, is_channels_last: bool
) -> ImageEncoder:
    """Make an image encoder for images of one size.

    Args:
        name: its architecture.
        image_size: side of the images, in pixels.
        weights: what :func:`load_cnn` takes; None for random ones.
        frozen_stages: how many stages, the stem first, are not trained.
        is_channels_last: run it in the channels-last memory format.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if an argument is out of range or the weights do not fit.

    Example:
        >>> make_image_encoder("resnet_small", 128, None, 5, is_channels_last=True).stride
        32
        >>> make_image_encoder("resnet_small", 100, None, 5, is_channels_last=True)
        Traceback (most recent call last):
        ValueError: image_size must be a multiple of 32 for resnet_small, not 100
    """
    if is_channels_last and name == "resnet_tiny":
        raise ValueError("resnet_tiny has too few channels for PyTorch's channels-last kernels: set it to false")
    cnn = make_cnn(name)
    if weights is not None:
        load_cnn(cnn, name, weights)
    image_encoder = ImageEncoder(cnn, frozen_stages)
    if image_size < image_encoder.stride or image_size % image_encoder.stride:
        raise ValueError(f"image_size must be a multiple of {image_encoder.stride} for {name}, not {image_size}")
    if is_channels_last:
        image_encoder.to(memory_format=torch.channels_last)
    return image_encoder


def draw_as_bert(model: nn.Module, hidden_size: int, but: nn.Module) -> None:
    """Draw weights as BERT does: normal ones, zero biases, LayerNorms of one.

    Args:
        model: whose weights are drawn.
        hidden_size: its width; a narrower model gets larger weights, so that its scores vary as much.
        but: a part that keeps its weights.

    Example:
        >>> model = nn.Sequential(nn.Linear(768, 768), nn.Linear(2, 2))
        >>> draw_as_bert(model, hidden_size=768, but=model[1])
        >>> round(model[0].weight.std().item(), 3), model[0].bias.abs().max().item()
        (0.02, 0.0)
    """
    kept = set(but.parameters())
    for name, parameter in model.named_parameters():
        if parameter in kept:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=_STD * (_WIDTH / hidden_size) ** 0.5)


def load_bert(model: "MedViLL", source: str) -> None:
    """Copy a BERT into a backbone: embeddings, encoder, pooler and, where it has one, the MLM head.

    CLS and SEP_V begin as BERT's position 0 of segment 0, the text as its segment 1.

    Args:
        model: takes the weights; its sizes must be those of the BERT.
        source: a local folder or a hub name that ``transformers`` can load as BERT.

    Raises:
        FileNotFoundError: if there is none, or it cannot be read.
        ValueError: if it has other sizes, another activation, or lacks a part that is needed.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from medvill_pl import MedViLL
        >>> sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        >>> bert = BertForMaskedLM(BertConfig(vocab_size=272, hidden_size=32, **sizes))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bert.save_pretrained(folder)
        ...     backbone = MedViLL(
        ...         image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic", text_weights=folder,
        ...         hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64,
        ...     )
        >>> torch.equal(backbone.report_embedding.word.weight, bert.bert.embeddings.word_embeddings.weight)
        True
    """
    bert, missing = _read_bert(source)
    _check_sizes(model, bert.config, source)
    lost = sorted(name for name in missing if name.startswith(("bert.embeddings.", "bert.encoder.")))
    if lost:
        raise ValueError(f"text_weights: {source} lacks {lost[0]}")
    _copy_embeddings(model, bert.bert.embeddings, source)
    prefix = "encoder."
    encoder = {rename_weight(prefix + name): tensor for name, tensor in bert.bert.encoder.state_dict().items()}
    model.encoder.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in encoder.items()})
    if not any("pooler" in name for name in missing):
        model.pooler.load_state_dict(bert.bert.pooler.state_dict())
    if not any("predictions.transform" in name for name in missing):
        head = bert.cls.predictions
        model.mlm_head.dense.load_state_dict(head.transform.dense.state_dict())
        model.mlm_head.norm.load_state_dict(head.transform.LayerNorm.state_dict())
        with torch.no_grad():
            model.mlm_head.bias.copy_(head.bias)


def _read_bert(source: str) -> tuple[Any, list[str]]:
    """Read a BERT with both heads, and the names of the weights that its file does not have."""
    from transformers import BertForPreTraining

    if looks_like_path(source) and not Path(source).is_dir():
        raise FileNotFoundError(f"text_weights: no such folder: {source}")
    try:
        bert, report = BertForPreTraining.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise FileNotFoundError(
            f"text_weights: {source!r} could not be loaded as a BERT, here or from the Hugging Face hub: give a folder "
            f"with config.json and model.safetensors, or set text_weights to none ({str(error).splitlines()[0]})"
        ) from error
    return bert, list(report["missing_keys"])


def _check_sizes(model: "MedViLL", config: Any, source: str) -> None:
    expected = {theirs: model.hparams[ours] for theirs, ours in _SIZES.items()}
    for name, size in {"vocab_size": model.tokenizer.vocab_size, **expected}.items():
        if getattr(config, name) != size:
            raise ValueError(f"text_weights: {source} has {name} {getattr(config, name)}, the model {size}")
    if config.hidden_act not in ("gelu", "gelu_python"):  # one function under two names
        raise ValueError(f"text_weights: {source} has hidden_act {config.hidden_act!r}, the model 'gelu'")


@torch.no_grad()
def _copy_embeddings(model: "MedViLL", embeddings: Any, source: str) -> None:
    position: Tensor = embeddings.position_embeddings.weight
    segment: Tensor = embeddings.token_type_embeddings.weight
    report, num_positions = model.report_embedding, len(model.report_embedding.position)
    if num_positions > len(position):
        raise ValueError(f"text_weights: {source} has {len(position)} positions, max_tokens needs {num_positions}")
    report.word.weight.copy_(embeddings.word_embeddings.weight)
    report.position.copy_(position[:num_positions])
    report.semantic.copy_(segment[1])
    for embedding in (model.cls_position_embedding, model.sep_position_embedding):
        embedding.copy_(position[0] + segment[0])
    model.embedding_norm.load_state_dict(embeddings.LayerNorm.state_dict())
