"""What every ``test`` run leaves on disk: its results, example by example, and the inference time."""

import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from medvill_pl.batch import Batch
from medvill_pl.data.module import BaseDataModule
from medvill_pl.evaluation.results import Results
from medvill_pl.files import free_name
from medvill_pl.runs import run_folder


class _Tested(Protocol):
    """What a task has after its test."""

    results: Results
    first_test_batch: Batch
    data: BaseDataModule | None

    def predict_step(self, batch: Batch, batch_idx: int) -> object: ...


class ResultTable(Callback):
    """Writes the per-example results of a ``test`` run into its folder: ``test.parquet`` and ``test.json``.

    Beside the results stand the configuration, the metrics and the inference time: milliseconds per example, warm,
    at batch 1 and at the recipe's batch, with the device. Tasks bring this callback along.

    Args:
        time_inference: measure the inference time, which takes a few predictions more.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from medvill_pl import ClassificationTask, Results, SyntheticDataModule
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=mkdtemp(), enable_progress_bar=False,
        ...                   callbacks=[ResultTable(time_inference=False)])
        >>> task = ClassificationTask(tiny, use_report=False)
        >>> _ = trainer.test(task, datamodule=SyntheticDataModule(num_test=8), verbose=False)
        >>> len(Results.read(Path(trainer.default_root_dir, "test.parquet")).rows)
        8
    """

    def __init__(self, time_inference: bool = True) -> None:
        self.time_inference = time_inference

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, from the first process."""
        folder = run_folder(trainer)
        task = cast(_Tested, pl_module)
        if not trainer.is_global_zero or trainer.fast_dev_run or not task.results.rows:  # type: ignore[attr-defined]
            return
        config = task.results.config
        config["data"] = _describe_data(task.data)
        config["checkpoint"] = str(trainer.ckpt_path) if trainer.ckpt_path else None
        config["scores"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        config["device"] = _device_name(pl_module.device)
        if self.time_inference:
            with trainer.precision_plugin.predict_step_context():
                config["ms_per_example"] = inference_time(task, pl_module.device)
        path = free_name(folder / "test.parquet")
        task.results.write(path)
        rank_zero_info(f"{len(task.results.rows):,} results are in {path}")


def _describe_data(data: BaseDataModule | None) -> dict[str, Any]:
    if data is None:
        return {"name": None, "seed": None, "arguments": {}}
    plain = (str, int, float, bool, type(None))
    arguments = {name: value for name, value in data.hparams.items() if isinstance(value, plain)}
    return {"name": data.name, "seed": data.seed, "arguments": arguments}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def inference_time(task: _Tested, device: torch.device, seconds: float = 2.0) -> dict[str, float]:
    """Time a task's ``predict_step``.

    Args:
        task: a tested task, which keeps its first test batch.
        device: where it runs.
        seconds: after its warm-up, a batch size is repeated for about so long, three times at least.

    Returns:
        Milliseconds per example by batch size: ``1`` and that of the batch.
    """
    batch = task.first_test_batch
    times = {}
    for size in sorted({1, len(batch["id"])}):
        part = slice_batch(batch, size)
        runs = _repeat(lambda part=part: task.predict_step(part, 0), device, seconds)  # type: ignore[misc]
        times[str(size)] = 1000 * runs / size
    return times


@torch.inference_mode()
def _repeat(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median time of a run, in seconds."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()  # warm-up
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
        times.append(timed())
    return sorted(times)[len(times) // 2]


def slice_batch(batch: Batch, size: int) -> Batch:
    """The first examples of a batch."""
    return Batch(**{name: value[:size] for name, value in batch.items()})  # type: ignore[typeddict-item, index, no-any-return]
