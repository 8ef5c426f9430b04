"""Time one full-size pre-training step against a plain reading of the same model, cause by cause.

A step goes from a batch on the CPU to updated weights: mask tokens, move to the device, forward, backward, AdamW. The
plain reading pads to the longest text the model takes, scores the vocabulary at every token, adds a dense float mask to
the attention scores, updates one tensor at a time, and computes in float32. Each level then changes one thing, up to
the library as a user runs it. Levels share batches and draws and take turns, so that a slow minute slows them all.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import FULL, SMALL, clock, device_name, draw_lengths, make_tokenizer, write_figures
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medvill_pl import BackboneConfig, MaskStrategy, PretrainingTask
from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.data.batches import PairDataset
from medvill_pl.data.negatives import NonMatchingIndex
from medvill_pl.data.plan import BatchPlan, BatchRequest
from medvill_pl.models.encoder import Encoder
from medvill_pl.tasks.optimizers import make_adamw
from medvill_pl.tokenizer import MAX_TOKENS

AIMS = {"cpu": 2.5, "cuda": 6.0}
BUCKET_BATCHES = 4  # the data modules' default
Level = IntEnum("Level", "PLAIN PADDING LOGITS ATTENTION ADAMW CHANNELS_LAST BF16 COMPILE", start=0)  # each adds one


def made_up_pairs(num_pairs: int, image_size: int, vocab: list[str]) -> SimpleNamespace:
    """Pairs of noise and made-up words, as long as reports are."""
    rng = np.random.default_rng(0)
    lengths = draw_lengths(num_pairs, rng)
    noise = rng.integers(0, 256, (1, image_size + num_pairs, image_size), dtype=np.uint8)
    return SimpleNamespace(
        ids=[f"pair-{number}" for number in range(num_pairs)],
        reports=[" ".join(rng.choice(vocab, length)) for length in lengths],
        labels=np.full((num_pairs, len(FINDINGS)), np.nan, dtype=np.float32),
        image=lambda index: torch.from_numpy(noise[:, index : index + image_size]),
    )


def make_batches(options: argparse.Namespace) -> list[Batch]:
    """One batch per round, planned, paired and padded as in training."""
    tokenizer, image_size = make_tokenizer(options.small), (SMALL if options.small else FULL)["image_size"]
    num_pairs = options.batch * BUCKET_BATCHES * -(-options.steps // BUCKET_BATCHES)
    pairs = made_up_pairs(num_pairs, image_size, tokenizer.tokens(tokenizer.ordinary_ids.tolist()))
    dataset = PairDataset(pairs, pairs.reports, tokenizer, MAX_TOKENS, "train", seed=0)
    plan = BatchPlan(dataset.lengths, NonMatchingIndex(np.arange(num_pairs)), options.batch, 1, 0, BUCKET_BATCHES)
    requests = [BatchRequest(0, images.tolist(), reports.tolist()) for images, reports in plan.train(0)]
    return [dataset[request] for request in requests[: options.steps]]


def dense_mask(encoder: Encoder, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Turn the bool mask into the floats that the plain reading adds to the scores: 0 or -10000."""
    hidden, mask = args
    return hidden, (~mask).float() * -10_000


@contextmanager
def plain_attention(encoder: Encoder) -> Iterator[None]:
    """Let an encoder compute the whole matrix of attention, under a dense mask."""
    hook = encoder.register_forward_pre_hook(dense_mask)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        hook.remove()


def plain_loss(task: PretrainingTask, batch: Batch) -> Tensor:
    """The task's loss with the vocabulary scored at every position of the text."""
    output = task(batch, MaskStrategy(task.hparams["mask_strategy"]))
    logits = task.backbone.mlm_logits(output.text).flatten(0, 1)
    targets = torch.full_like(batch["input_ids"].flatten(), -100)
    targets[batch["mlm_positions"]] = batch["mlm_targets"]
    mlm = nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    matching = task.irm_head(output.pooled).squeeze(1)
    return mlm + nn.functional.binary_cross_entropy_with_logits(matching, batch["matched"].float())


@cache
def make_task(small: bool, device: str, channels_last: bool, compiled: bool) -> PretrainingTask:
    """The task, with the same weights every time."""
    backbone: BackboneConfig = {**(SMALL if small else FULL), "tokenizer": make_tokenizer(small).to_json()}
    backbone["channels_last"] = channels_last
    torch.manual_seed(0)
    task = PretrainingTask(backbone, num_visual_samples=10 if small else 180, compile=compiled)
    task.trainer = Trainer(accelerator=device, devices=1, logger=False, barebones=True)
    task.setup("fit")
    return task.to(device).train()


@cache
def make_optimizer(task: PretrainingTask, fused: bool) -> torch.optim.Optimizer:
    """The task's own optimizer; where it is not to be fused, it goes from tensor to tensor."""
    optimizer = make_adamw(task.parameters(), task.lr, task.weight_decay)
    for group in optimizer.param_groups if not fused else ():
        group |= {"fused": False, "foreach": False}
    return optimizer


def task_at(level: Level, options: argparse.Namespace) -> PretrainingTask:
    """The task of a level; levels of one memory layout share it."""
    return make_task(options.small, options.device, level >= Level.CHANNELS_LAST, level >= Level.COMPILE)


def loss_of(level: Level, options: argparse.Namespace, batch: Batch) -> Tensor:
    """Pad as the level does, mask tokens, move the batch to the device and compute the loss."""
    task = task_at(level, options)
    if level < Level.PADDING:
        missing = (0, MAX_TOKENS + 1 - batch["input_ids"].shape[1])
        input_ids = nn.functional.pad(batch["input_ids"], missing, value=task.backbone.tokenizer.pad_id)
        batch = Batch({**batch, "input_ids": input_ids, "text_mask": nn.functional.pad(batch["text_mask"], missing)})
    batch = task.masking(batch)
    batch = Batch({k: v.to(options.device) if isinstance(v, Tensor) else v for k, v in batch.items()})
    attention = nullcontext() if level >= Level.ATTENTION else plain_attention(task.backbone.encoder)
    with attention, torch.autocast(options.device, torch.bfloat16, enabled=level >= Level.BF16):
        return task.step(batch).loss if level >= Level.LOGITS else plain_loss(task, batch)


def step(level: Level, options: argparse.Namespace, batch: Batch) -> float:
    """Run one step and return its seconds."""
    optimizer = make_optimizer(task_at(level, options), level >= Level.ADAMW)
    torch.manual_seed(0)
    start = clock(options.device)
    loss_of(level, options, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return clock(options.device) - start


@torch.no_grad()
def check(options: argparse.Namespace, batch: Batch) -> dict[str, float]:
    """Compute the losses of the plain reading and of ours in float32 without dropout, which must agree."""
    losses = {}
    for name, level in (("plain", Level.PLAIN), ("ours", Level.CHANNELS_LAST)):
        dropouts = [module for module in task_at(level, options).modules() if isinstance(module, nn.Dropout)]
        for module in dropouts:
            module.p = 0.0
        torch.manual_seed(0)
        losses[name] = loss_of(level, options, batch).item()
        for module in dropouts:
            module.p = 0.1
    # Random weights react little: at --small, attention without any mask moves the loss by 6e-4 of it only.
    assert abs(losses["ours"] / losses["plain"] - 1) <= 1e-4, f"the losses differ: {losses}"
    return losses


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP per second of the best of some large matrix products."""
    size = 8192 if device == "cuda" else 2048
    matrix, seconds = torch.randn(size, size, device=device).to(dtype), []
    for _ in range(10):
        start = clock(device)
        matrix @ matrix
        seconds.append(clock(device) - start)
    return 2 * size**3 / min(seconds)


def peak_memory(options: argparse.Namespace, level: Level, batch_size: int) -> int | None:
    """Run ``measure_memory`` in a process of its own; None if a GPU's memory runs out."""
    # Linux hands a child its parent's peak, so this comes before anything large.
    command = [sys.executable, __file__, "--memory-of", str(int(level)), "--device", options.device]
    command += ["--batch", str(batch_size), "--steps", str(options.steps)] + ["--small"] * options.small
    result = subprocess.run(command, capture_output=True, text=True)
    if "OutOfMemoryError" in result.stderr:
        return None
    if result.returncode:
        raise RuntimeError(f"level {level.name} failed:\n{result.stderr}")
    return int(result.stdout.split()[-1])


def measure_memory(options: argparse.Namespace) -> int:
    """Peak bytes of two steps of one level in this process: allocated on a GPU, resident on a CPU."""
    longest = max(make_batches(options), key=lambda batch: batch["input_ids"].shape[1])
    for _ in range(2):  # the second has AdamW's moments in memory from the start
        step(Level(options.memory_of), options, longest)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_batch(options: argparse.Namespace) -> int:
    """Double the plain reading's batch till memory runs out, then take what fills 90 % of the device."""
    peaks, size = {}, 4
    while (peak := peak_memory(options, Level.PLAIN, size)) is not None:
        peaks[size], size = peak, 2 * size
    (half, less), (most, peak) = list(peaks.items())[-2:]  # memory is linear in the batch
    free = 0.9 * torch.cuda.get_device_properties(0).total_memory - peak
    return int(most + free * (most - half) / (peak - less)) // 2 * 2


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark."""
    if options.batch is None:
        options.batch = largest_batch(options) if options.device == "cuda" else 2
    levels = [level for level in Level if options.compile or level < Level.COMPILE]
    weighed = levels[:: len(levels) - 1] if options.small else levels  # each costs a process
    memory = {level: peak_memory(options, level, options.batch) for level in weighed}

    batches = make_batches(options)
    losses = check(options, batches[0])
    work: dict[Level, int] = {}
    for level in levels:
        # Later levels do the same arithmetic, but not all of their kernels are counted.
        with FlopCounterMode(display=False) if level <= Level.LOGITS else nullcontext() as counter:
            step(level, options, batches[0])
        work[level] = counter.get_total_flops() if counter else work[Level.LOGITS]
        for batch in batches if options.device == "cuda" else ():  # the allocator learns all shapes
            step(level, options, batch)
    seconds: dict[Level, list[float]] = {level: [] for level in levels}
    for batch in batches:
        for level in levels:
            seconds[level].append(step(level, options, batch))
    peaks = {dtype: matmul_peak(options.device, dtype) for dtype in (torch.float32, torch.bfloat16)}

    rows = []
    for level in levels:
        median = statistics.median(seconds[level])
        peak = peaks[torch.bfloat16 if level >= Level.BF16 else torch.float32]
        row = {"level": ("+ " if level else "") + level.name.lower().replace("_", "-")}
        row |= {"seconds": median, "speed_up": statistics.median(seconds[Level.PLAIN]) / median}
        row |= {"gib": memory[level] / 2**30 if level in memory else None}
        rows.append(row | {"tflop": work[level] / 1e12, "mfu": work[Level.LOGITS] / median / peak})
    return {
        "device": device_name(options.device),
        "batch": options.batch,
        "text_tokens": [batch["input_ids"].shape[1] for batch in batches],
        "loss": losses,
        "matmul_tflops": {str(dtype).removeprefix("torch."): peak / 1e12 for dtype, peak in peaks.items()},
        "aim": AIMS[options.device],
        "rows": rows,
    }


def show(result: dict[str, Any], path: str | None) -> None:
    """Print the table, and write the figures where a path is given."""
    write_figures(result, path)
    print(f"{result['device']}, batch {result['batch']}, median of {len(result['text_tokens'])} steps")
    print(f"text tokens of each batch: {result['text_tokens']}; plain: {MAX_TOKENS + 1}")
    print("loss in float32 without dropout:", ", ".join(f"{k} {v:.6f}" for k, v in result["loss"].items()))
    print("matmul TFLOP/s:", ", ".join(f"{k} {v:.3g}" for k, v in result["matmul_tflops"].items()), end="\n\n")
    print("| level | s/step | speed-up | peak GiB | TFLOP | MFU |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in result["rows"]:
        gib = "-" if row["gib"] is None else f"{row['gib']:.1f}"
        figures = f"{row['seconds']:.3g} | {row['speed_up']:.2f} | {gib} | {row['tflop']:.3g} | {row['mfu']:.0%}"
        print(f"| {row['level']} | {figures} |")
    print(f"\nspeed-up {result['rows'][-1]['speed_up']:.2f}, aim {result['aim']}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs (default: 2 on a CPU, what fills 90 %% of a GPU)")
    parser.add_argument("--steps", type=int, help="timed steps per level (default: 3 on a CPU, 20 on a GPU)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="also compile (default: on a GPU)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script in seconds")
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (3 if options.device == "cpu" else 20)
    options.compile = options.device == "cuda" if options.compile is None else options.compile
    return options


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse()
    if options.memory_of is not None:
        print(measure_memory(options))
    else:
        show(measure(options), options.json)
