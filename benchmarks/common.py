"""What the benchmarks share: sizes, a tokenizer, backbones, the clock and how figures are kept."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medvill_pl import BackboneConfig, MedViLL, ReportTokenizer
from medvill_pl.tokenizer import MAX_TOKENS, SPECIAL_TOKENS

FULL = BackboneConfig(image_size=512)  # for the rest, the defaults are the paper's
SMALL = BackboneConfig(image_encoder="resnet_small", image_size=64, hidden_size=32, num_layers=2, num_heads=2)


@cache
def make_tokenizer(small: bool) -> ReportTokenizer:
    """A tokenizer with as many tokens as BERT's, or few; all but the special ones are whole words."""
    words = [f"word{number}" for number in range((300 if small else 30_522) - len(SPECIAL_TOKENS))]
    return ReportTokenizer.from_vocab([*SPECIAL_TOKENS, *words])


@cache
def make_backbone(small: bool, device: str, channels_last: bool) -> MedViLL:
    """A backbone in evaluation mode, with the same weights every time."""
    config: BackboneConfig = {**(SMALL if small else FULL), "tokenizer": make_tokenizer(small).to_json()}
    torch.manual_seed(0)
    return MedViLL(**config, channels_last=channels_last).to(device).eval()


def draw_lengths(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of made-up reports in tokens, int64, shape ``(number,)``.

    Log-normal with a median of 55 and sigma 0.5 (mean 62, 95 % under 126), clipped to 8..253: an assumption close to
    the longer of Findings and Impression in MIMIC-CXR.
    """
    return rng.lognormal(np.log(55), 0.5, number).round().clip(8, MAX_TOKENS).astype(np.int64)


def clock(device: str) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: str) -> str:
    """The device and the version of PyTorch, for the head of a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def write_figures(figures: Any, path: str | None) -> None:
    """Write the figures where a path is given."""
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
