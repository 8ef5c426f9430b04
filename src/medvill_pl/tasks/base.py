"""What all tasks share: stages, metrics, results, optimizer. It knows no backbone and no dataset."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MetricCollection

from medvill_pl.batch import Batch, Split, derive_seed
from medvill_pl.data.module import BaseDataModule
from medvill_pl.evaluation.results import Results
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.tasks.collect import collect_results
from medvill_pl.tasks.loaders import check_loaders
from medvill_pl.tasks.optimizers import Schedule, configure_adamw
from medvill_pl.tasks.result_table import ResultTable
from medvill_pl.tasks.stage import Stage
from medvill_pl.tasks.step import StepOutput, require_finite
from medvill_pl.tokenizer import InputSpec


class BaseTask(LightningModule, ABC):
    """A problem to learn: one :meth:`step`, which training, validation and test share, and its metrics.

    Args:
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after the warm-up: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        seed: seed of dropout, sampling and draws.

    Example:
        >>> from torch import nn
        >>> class PixelTask(BaseTask):
        ...     def __init__(self) -> None:
        ...         super().__init__(lr=1e-3)
        ...         self.head = nn.LazyLinear(14)
        ...     def step(self, batch: Batch) -> StepOutput:
        ...         logits = self.head(batch["image"].flatten(1) / 255)
        ...         target = (batch["labels"] == 1).float()
        ...         return StepOutput(nn.functional.binary_cross_entropy_with_logits(logits, target))
        >>> PixelTask().monitor
        'val/loss'
    """

    monitor: str = "val/loss"  # the figure that picks the best checkpoint
    mode: Literal["min", "max"] = "min"
    score_fn: str = ""  # import path of the function that computes metrics from the rows of a stage; "" for none
    data: BaseDataModule | None = None  # of the running stage; None with loaders of the user's own
    results: Results  # of the last test
    first_test_batch: Batch

    def __init__(
        self,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.warmup_steps, self.schedule = lr, weight_decay, warmup_steps, schedule
        self.seed = seed

    @abstractmethod
    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""

    def metrics(self, stage: str) -> Mapping[str, MetricCollection]:
        """Fresh metrics of a stage that are taken batch by batch, by group of :attr:`StepOutput.metric_inputs`."""
        return {}

    def score_context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """What ``score_fn`` needs besides the rows of a stage, such as names and baselines; plain values."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Further plain values for the record beside the results."""
        return {}

    def batch_transform(self, split: Split) -> Callable[[Batch], Batch] | None:
        """What a data module does to each batch of a split, in its worker processes; None for nothing."""
        return None

    def arrange_predictions(self, rows: Rows) -> Rows:
        """Put what ``predict`` gave, from all processes, into the order in which it is written."""
        return sorted(rows, key=lambda row: str(row["id"]))

    @property
    def input_spec(self) -> InputSpec | None:
        """What the model reads, which a data module takes over; None if any data will do."""
        return None

    # -- stages ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build the metrics, and refuse loaders that would train wrongly."""
        self.train_stage, self.val_stage, self.test_stage = (
            Stage(n, self.metrics(n)) for n in ("train", "val", "test")
        )
        if stage == "fit":
            self.train()  # a loaded model is in evaluation mode, which Lightning keeps

    def teardown(self, stage: str) -> None:
        """Let go of the data module, which belongs to one run of the trainer."""
        self.data = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but leave in evaluation mode what is frozen: no dropout, and BatchNorm keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            weights = list(module.parameters())
            if mode and weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self

    def on_train_start(self) -> None:
        """Refuse loaders of the user's own that would give every pair to every process."""
        check_loaders(self.trainer, self.data)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and sampling from the step alone, so that a resumed run draws what it would have."""
        torch.manual_seed(derive_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def _run(self, batch: Batch, name: str) -> Tensor:
        output, stage, size = self.step(batch), self._stage(name), len(batch["id"])
        require_finite(output.loss, f"{name} loss", f"epoch {self.current_epoch}, step {self.global_step}", batch["id"])
        stage.update(output, size)
        self.log(f"{name}/loss", output.loss if name == "train" else stage.loss, prog_bar=True, batch_size=size)
        for loss, value in output.losses.items() if name == "train" else ():
            self.log(f"train/{loss}", value, batch_size=size)
        for group in output.metric_inputs:
            for key, metric in stage.named_metrics(group):
                in_bar = key == self.monitor
                self.log(key, metric, on_step=False, on_epoch=True, prog_bar=in_bar, batch_size=size)
        return output.loss

    def _stage(self, name: str) -> Stage:
        return {"train": self.train_stage, "val": self.val_stage, "test": self.test_stage}[name]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss to descend."""
        return self._run(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the validation split."""
        self._run(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the test split."""
        if batch_idx == 0:
            self.first_test_batch = batch
        self._run(batch, "test")

    def configure_callbacks(self) -> list[Callback]:
        """Every test run writes its results, unless the trainer was given a :class:`ResultTable` of its own."""
        return [] if any(isinstance(c, ResultTable) for c in self.trainer.callbacks) else [ResultTable()]  # type: ignore[attr-defined]

    def finish_results(self, stage: str) -> Rows:
        """The rows of this process, when all batches of a stage are done."""
        return self._stage(stage).take_rows()

    def on_validation_epoch_end(self) -> None:
        """Score the validation split's results."""
        collect_results(self, "val")

    def on_test_epoch_end(self) -> None:
        """Score the test split's results and keep them as ``results``."""
        self.results = collect_results(self, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with a schedule where the rate changes."""
        return configure_adamw(self, self.lr, self.weight_decay, self.warmup_steps, self.schedule)
