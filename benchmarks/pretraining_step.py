"""Time one full-size pre-training step against a plain reading of the same model, cause by cause.

A step goes from a batch on the CPU to updated weights: hide words, move to the device, forward, backward, AdamW. The
plain reading pads to the longest text the model takes, scores the vocabulary at every word, adds a dense float mask to
the attention scores, updates one tensor at a time, and computes in float32. Each level then changes one thing, up to
the library as a user runs it. All levels share weights, batches and draws, and take turns, so that a machine that
slows down slows them all.
"""

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medvill_pl import BackboneConfig, MaskStrategy, PretrainingTask, ReportTokenizer
from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.data.batches import BatchPlan, BatchRequest, NonMatchingIndex, PairDataset
from medvill_pl.language import MAX_WORDS, SPECIAL_TOKENS

AIMS = {"cpu": 2.5, "cuda": 6.0}
BUCKET_BATCHES = 4  # the data modules' default
FULL: BackboneConfig = {}  # the class defaults are the paper's sizes
SMALL = BackboneConfig(
    vision="resnet_tiny", image_size=64, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64
)


class Level(IntEnum):
    """What is switched on, each with all those before it."""

    PLAIN = 0
    PADDING = 1
    LOGITS = 2
    ATTENTION = 3
    ADAMW = 4
    CHANNELS_LAST = 5
    BF16 = 6
    COMPILE = 7


NAMES = (
    "plain reading",
    "+ padding to the batch's longest",
    "+ logits at hidden words only",
    "+ fused attention",
    "+ fused AdamW",
    "+ channels-last CNN",
    "+ bf16 autocast",
    "+ torch.compile",
)


class MadeUpPairs:
    """Pairs of noise and made-up words, as long as reports are.

    Lengths are log-normal with a median of 55 word pieces and sigma 0.5 (mean 62, 95 % under 126), clipped to
    8..253: an assumption close to the longer of Findings and Impression in MIMIC-CXR.
    """

    def __init__(self, num_pairs: int, image_size: int, vocab: list[str]) -> None:
        rng = np.random.default_rng(0)
        lengths = rng.lognormal(np.log(55), 0.5, num_pairs).round().clip(8, MAX_WORDS).astype(int)
        self.ids = [f"pair-{number}" for number in range(num_pairs)]
        self.reports = [" ".join(rng.choice(vocab, length)) for length in lengths]
        self.labels = np.full((num_pairs, len(FINDINGS)), np.nan, dtype=np.float32)
        self._side = image_size

    def image(self, index: int) -> Tensor:
        """Noise, uint8, shape ``(1, side, side)``."""
        noise = torch.Generator().manual_seed(index)
        return torch.randint(256, (1, self._side, self._side), dtype=torch.uint8, generator=noise)


def make_tokenizer(vocab_size: int) -> ReportTokenizer:
    """A tokenizer of so many tokens, all but the special ones whole words."""
    words = [f"word{number}" for number in range(vocab_size - len(SPECIAL_TOKENS))]
    return ReportTokenizer.from_vocab([*SPECIAL_TOKENS, *words])


def make_batches(options: argparse.Namespace, batch_size: int) -> list[Batch]:
    """One batch a round, cut, paired and padded as in training."""
    tokenizer = make_tokenizer(options.vocab_size)
    num_pairs = batch_size * BUCKET_BATCHES * -(-options.steps // BUCKET_BATCHES)
    vocab = tokenizer.tokens(tokenizer.ordinary_ids.tolist())
    dataset = PairDataset(MadeUpPairs(num_pairs, options.image_size, vocab), tokenizer, MAX_WORDS, "train", seed=0)
    negatives = NonMatchingIndex(np.arange(num_pairs))
    plan = BatchPlan(dataset.lengths, negatives, batch_size, 1, seed=0, bucket_batches=BUCKET_BATCHES)
    requests = [BatchRequest(0, images.tolist(), reports.tolist()) for images, reports in plan.train(0)]
    return [dataset[request] for request in requests[: options.steps]]


def pad_fully(batch: Batch, pad_id: int) -> Batch:
    """Pad texts to the longest that the model takes."""
    missing = MAX_WORDS + 1 - batch["input_ids"].shape[1]
    input_ids = nn.functional.pad(batch["input_ids"], (0, missing), value=pad_id)
    return Batch(**{**batch, "input_ids": input_ids, "text_mask": nn.functional.pad(batch["text_mask"], (0, missing))})


def dense_mask(encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Turn the bool mask of the plain reading into the floats it adds to the scores: 0 or -10000."""
    if encoder.config._attn_implementation == "eager":
        kwargs["attention_mask"] = (~kwargs["attention_mask"]).float() * -10_000
    return args, kwargs


def plain_loss(task: PretrainingTask, batch: Batch) -> Tensor:
    """The task's loss with the vocabulary scored at every place of the text."""
    output = task(batch, MaskStrategy(task.hparams["mask_strategy"]))
    logits = task.backbone.mlm_logits(output.text).flatten(0, 1)
    targets = torch.full_like(batch["input_ids"].flatten(), -100)
    targets[batch["mlm_positions"]] = batch["mlm_targets"]
    mlm = nn.functional.cross_entropy(logits, targets, ignore_index=-100)
    matching = task.irm_head(output.pooled).squeeze(1)
    return mlm + nn.functional.binary_cross_entropy_with_logits(matching, batch["matched"].float())


class Runner:
    """Builds the model and steps it at any level.

    Levels that need no other memory layout or compiler share one task; optimizers of one kind share their state.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self._tasks: dict[tuple[bool, bool], PretrainingTask] = {}
        self._optimizers: dict[tuple[int, bool], torch.optim.Optimizer] = {}

    def task(self, level: Level) -> PretrainingTask:
        """The task of a level, with the same weights at all levels."""
        key = (level >= Level.CHANNELS_LAST, level >= Level.COMPILE)
        if key not in self._tasks:
            sizes = SMALL if self.options.small else FULL
            tokenizer = make_tokenizer(self.options.vocab_size).to_json()
            backbone = BackboneConfig(**{**sizes, "tokenizer": tokenizer, "channels_last": key[0]})
            torch.manual_seed(0)
            task = PretrainingTask(backbone, num_visual_samples=self.options.num_visual_samples, compile=key[1])
            task.backbone.encoder.register_forward_pre_hook(dense_mask, with_kwargs=True)
            task.trainer = Trainer(
                accelerator=self.device.type, devices=1, logger=False, barebones=True, enable_model_summary=False
            )
            task.setup("fit")
            self._tasks[key] = task.to(self.device).train()
        task = self._tasks[key]
        task.backbone.encoder.config._attn_implementation = "sdpa" if level >= Level.ATTENTION else "eager"
        return task

    def _optimizer(self, level: Level) -> torch.optim.Optimizer:
        task, is_fused = self.task(level), level >= Level.ADAMW
        if (id(task), is_fused) not in self._optimizers:
            optimizer = task.configure_optimizers()["optimizer"]
            if not is_fused:
                groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizer.param_groups]
                optimizer = torch.optim.AdamW(groups, lr=task.lr, foreach=False, fused=False)
            self._optimizers[id(task), is_fused] = optimizer
        return self._optimizers[id(task), is_fused]

    def loss(self, level: Level, batch: Batch) -> Tensor:
        """Hide words, move the batch to the device and compute the loss."""
        task = self.task(level)
        hidden = task.hide_words(batch)
        moved = Batch(**{k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in hidden.items()})
        with torch.autocast(self.device.type, torch.bfloat16, enabled=level >= Level.BF16):
            return task._step(moved).loss if level >= Level.LOGITS else plain_loss(task, moved)

    def step(self, level: Level, batch: Batch) -> float:
        """Run one step and return its seconds."""
        optimizer = self._optimizer(level)
        if level < Level.PADDING:
            batch = pad_fully(batch, self.task(level).backbone.tokenizer.pad_id)
        torch.manual_seed(0)
        self._wait()
        start = time.perf_counter()
        self.loss(level, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def check(self, batch: Batch) -> tuple[float, float]:
        """Losses of the plain reading and of ours without dropout, which must agree; at the level of channels-last."""
        losses = []
        for level in (Level.PLAIN, Level.CHANNELS_LAST):
            task = self.task(level)
            dropouts = [module for module in task.modules() if isinstance(module, nn.Dropout)]
            rates = [module.p for module in dropouts]
            for module in dropouts:
                module.p = 0.0
            torch.manual_seed(0)
            padded = batch if level else pad_fully(batch, task.backbone.tokenizer.pad_id)
            with torch.no_grad():
                losses.append(self.loss(level, padded).item())
            for module, rate in zip(dropouts, rates, strict=True):
                module.p = rate
        plain, ours = losses
        assert abs(ours - plain) <= 1e-3 * plain, f"the plain reading's loss is {plain}, ours {ours}"
        return plain, ours

    def matmul_peak(self, dtype: torch.dtype) -> float:
        """FLOP a second of the best of some large matrix products."""
        size, repeats = (8192, 20) if self.device.type == "cuda" else (2048, 8)
        a = torch.randn(size, size, device=self.device).to(dtype)
        seconds = []
        for _ in range(repeats):
            self._wait()
            start = time.perf_counter()
            a @ a
            self._wait()
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / min(seconds)


def peak_memory(options: argparse.Namespace, level: Level, batch_size: int) -> int | None:
    """Peak bytes of two steps of one level in a process of their own; None if the device's memory runs out.

    To be called while this process is small: Linux hands a child its parent's peak.
    """
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
    runner = Runner(options)
    longest = max(make_batches(options, options.batch), key=lambda batch: batch["input_ids"].shape[1])
    for _ in range(2):  # the second has AdamW's moments in memory from the start
        runner.step(Level(options.memory_of), longest)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_batch(options: argparse.Namespace) -> int:
    """Double the plain reading's batch till memory runs out, then take what fills 90 % of the device."""
    sizes, peaks = [], []
    size = 8
    while (peak := peak_memory(options, Level.PLAIN, size)) is not None:
        sizes, peaks, size = [*sizes, size], [*peaks, peak], 2 * size
    if len(sizes) < 2:
        raise MemoryError("the plain reading does not fit with 16 pairs: give --batch")
    per_pair = (peaks[-1] - peaks[-2]) / (sizes[-1] - sizes[-2])
    total = torch.cuda.get_device_properties(0).total_memory
    return int(sizes[-1] + (0.9 * total - peaks[-1]) / per_pair) // 2 * 2


class Row(NamedTuple):
    """Figures of one level; memory in GiB, work in TFLOP, use as a share of the matmul peak of its dtype."""

    name: str
    seconds: float
    speed_up: float
    memory: float | None
    work: float
    use: float


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark."""
    if options.batch is None:
        options.batch = largest_batch(options) if options.device == "cuda" else 2
    levels = [level for level in Level if options.compile or level < Level.COMPILE]
    weighed = levels[:: len(levels) - 1] if options.small else levels  # a process each, so only two where time is short
    memory = {level: peak_memory(options, level, options.batch) for level in weighed}

    runner, batches = Runner(options), make_batches(options, options.batch)
    plain, ours = runner.check(batches[0])
    work: dict[Level, int] = {}
    for level in levels:
        with FlopCounterMode(display=False) as counter:
            if level <= Level.LOGITS:  # later levels do the same arithmetic, but not all kernels are counted
                runner.step(level, batches[0])
        work[level] = counter.get_total_flops() or work[Level.LOGITS]
        for batch in batches if options.device == "cuda" else batches[:1]:
            runner.step(level, batch)
    seconds: dict[Level, list[float]] = {level: [] for level in levels}
    for batch in batches:
        for level in levels:
            seconds[level].append(runner.step(level, batch))
    peaks = {dtype: runner.matmul_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}

    rows = []
    for level in levels:
        median = statistics.median(seconds[level])
        dtype = torch.bfloat16 if level >= Level.BF16 else torch.float32
        speed_up = statistics.median(seconds[Level.PLAIN]) / median
        gib = memory[level] / 2**30 if memory.get(level) else None
        rows.append(
            Row(NAMES[level], median, speed_up, gib, work[level] / 1e12, work[Level.LOGITS] / median / peaks[dtype])
        )
    return {
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "batch": options.batch,
        "steps": options.steps,
        "text_tokens": [batch["input_ids"].shape[1] for batch in batches],
        "loss": {"plain": plain, "ours": ours},
        "matmul_peak_tflops": {str(dtype): peak / 1e12 for dtype, peak in peaks.items()},
        "aim": AIMS[options.device],
        "rows": [row._asdict() for row in rows],
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['device']}, torch {result['torch']}, batch {result['batch']}, median of {result['steps']} steps")
    print(f"tokens of text in each batch: {result['text_tokens']}; plain: {MAX_WORDS + 1}")
    print(f"loss in float32 without dropout: plain {result['loss']['plain']:.6f}, ours {result['loss']['ours']:.6f}")
    print(
        "matmul peak: " + ", ".join(f"{k} {v:.2f} TFLOP/s" for k, v in result["matmul_peak_tflops"].items()), end="\n\n"
    )
    print("| level | s/step | speed-up | peak memory, GiB | TFLOP done | needed FLOP/s of peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in (Row(**row) for row in result["rows"]):
        memory = "-" if row.memory is None else f"{row.memory:.2f}"
        figures = f"{row.seconds:.3f} | {row.speed_up:.2f} | {memory} | {row.work:.3g} | {row.use:.1%}"
        print(f"| {row.name} | {figures} |")
    print(f"\nspeed-up {result['rows'][-1]['speed_up']:.2f}, aim {result['aim']}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--batch", type=int, help="pairs (default: 2 on a CPU, what fills 90 %% of a GPU)")
    parser.add_argument("--steps", type=int, help="timed steps a level (default: 3 on a CPU, 20 on a GPU)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="also compile (default: on a GPU)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script in seconds")
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (3 if options.device == "cpu" else 20)
    options.compile = options.device == "cuda" if options.compile is None else options.compile
    options.vocab_size, options.num_visual_samples = (300, 10) if options.small else (30_522, 180)
    options.image_size = SMALL["image_size"] if options.small else 512
    return options


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse()
    if options.memory_of is not None:
        print(measure_memory(options))
    else:
        result = measure(options)
        show(result)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=2)
