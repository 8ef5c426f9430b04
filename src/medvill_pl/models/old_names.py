"""Names that version 0.1 used, in saved weights and in saved arguments, and their names of today."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_ARGUMENTS = {
    "vision": "image_encoder",
    "vision_weights": "image_encoder_weights",
    "freeze_vision_stages": "freeze_image_encoder_stages",
    "max_words": "max_tokens",
}
_PARTS = {
    "trunk.": "image_encoder.",
    "cls_place": "cls_position_embedding",
    "sep_place": "sep_position_embedding",
    "text_cls_place": "text_cls_position_embedding",
}
# Version 0.1 ran the encoder of transformers, so these are BERT's names too.
_LAYER_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "reduce",
    "output.LayerNorm": "output_norm",
}
_OLD_PART = re.compile("|".join(map(re.escape, _PARTS)))
_OLD_LAYER_PART = re.compile(rf"encoder\.layer\.(\d+)\.({'|'.join(map(re.escape, _LAYER_PARTS))})\.")


def rename_backbone_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of a backbone, as version 0.1 saved them, their names of today.

    Args:
        arguments: by name; names of today stay as they are.

    Example:
        >>> rename_backbone_arguments({"vision": "resnet50", "max_words": 253, "hidden_size": 768})
        {'image_encoder': 'resnet50', 'max_tokens': 253, 'hidden_size': 768}
    """
    return {_ARGUMENTS.get(name, name): value for name, value in arguments.items()}


def rename_weight(name: str) -> str:
    """Give a weight of a backbone, as version 0.1 (or BERT's encoder) names it, its name of today.

    Example:
        >>> rename_weight("encoder.layer.3.attention.self.query.weight")
        'encoder.layers.3.query.weight'
        >>> rename_weight("cls_place"), rename_weight("pooler.dense.bias")
        ('cls_position_embedding', 'pooler.dense.bias')
    """
    if match := _OLD_PART.match(name):
        return _PARTS[match[0]] + name[match.end() :]
    if match := _OLD_LAYER_PART.match(name):
        return f"encoder.layers.{match[1]}.{_LAYER_PARTS[match[2]]}.{name[match.end() :]}"
    return name


def rename_state_dict(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Give the weights of a backbone, as version 0.1 saved them, their names of today, in the same order.

    Args:
        state: tensors by name; names of today stay as they are.
        prefix: what stands before the backbone's names, such as ``"backbone."`` in a task's state dict. Names
            without it stay as they are.

    Example:
        >>> import torch
        >>> list(rename_state_dict({"trunk.stages.0.0.weight": torch.zeros(1), "sep_place": torch.zeros(1)}))
        ['image_encoder.stages.0.0.weight', 'sep_position_embedding']
    """
    return {
        prefix + rename_weight(name.removeprefix(prefix)) if name.startswith(prefix) else name: tensor
        for name, tensor in state.items()
    }


def rename_on_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let :meth:`torch.nn.Module.load_state_dict` of a backbone, or of what holds one, take weights of version 0.1.

    A hook for ``register_load_state_dict_pre_hook``.
    """
    renamed = rename_state_dict(state, prefix)
    state.clear()
    state.update(renamed)
