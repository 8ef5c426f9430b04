"""What all tasks share: stages, metrics, optimiser, checkpoints. It builds no heads and knows no dataset."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from medvill_pl.batch import Batch, derive_seed
from medvill_pl.data.batches import Examples
from medvill_pl.evaluation.results import Results
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.models.medvill import BackboneConfig, MedViLL, TrainingCorpus
from medvill_pl.runs import gather
from medvill_pl.tasks.result_table import ResultTable
from medvill_pl.tokenizer import ReportTokenizer, mask_tokens
from medvill_pl.weights import load_exactly

Schedule = Literal["constant", "linear"]


class StepOutput(NamedTuple):
    """What one step computed.

    Attributes:
        loss: the loss to descend, scalar; a mean over examples, or over ``loss_weight``.
        scored: for each group of metrics, predictions and targets.
        losses: further losses to log at every training step, scalars by name.
        results: what validation and test keep of each example: columns by name, tensors or lists of length B.
        loss_weight: of how many terms the loss is the mean, where these are not the examples: so that validation and
            test weigh batches rightly, however the split is cut into them.
    """

    loss: Tensor
    metric_inputs: Mapping[str, tuple[Tensor, Tensor]] = {}
    losses: Mapping[str, Tensor] = {}
    results: Mapping[str, Tensor | Sequence[Any]] = {}
    loss_weight: int | None = None


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the weights are those before the step."""


@runtime_checkable
class _Corpus(Protocol):
    """What a task wants to know of a data module."""

    name: str
    is_credentialed: bool
    image_size: int
    tokenizer: ReportTokenizer


class BaseTask(LightningModule, ABC):
    """A problem on top of a backbone.

    A subclass builds its heads and writes :meth:`step`, which training, validation and test share.
    Metrics that can be taken batch by batch are given by :meth:`metrics`; those of a whole split are
    scored from per-example results by the function that ``score_fn`` names, so that a test's tables can be made
    again without the model. Log names are ``{stage}/{metric}``.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead: a task's checkpoint, a folder that
            ``save_pretrained`` wrote, or a hub name.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases and norms.
        warmup_steps: optimizer steps over which the rate rises linearly.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout, sampling and draws.
        schedule: the rate after the warm-up: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.

    Raises:
        ValueError: if both ``backbone`` and ``backbone_ckpt`` are given, or weights do not fit.
    """

    score_fn = ""
    """Import path of the function that scores the rows of :attr:`results`; empty for none."""
    unused_parameters: tuple[str, ...] = ("text_cls_position_embedding", "pooler", "mlm_head")
    """Parts of the backbone that have no part in the loss: without a gradient, DDP would take them for a mistake."""

    def __init__(
        self,
        backbone: BackboneConfig | None,
        backbone_ckpt: str | None,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        compile: bool,
        seed: int,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        if backbone_ckpt is not None and backbone is not None:
            raise ValueError("give either backbone or backbone_ckpt: a checkpoint brings its own configuration")
        self.backbone = MedViLL(**(backbone or {})) if backbone_ckpt is None else load_backbone(backbone_ckpt)
        self.lr, self.weight_decay, self.warmup_steps, self.compile_backbone = lr, weight_decay, warmup_steps, compile
        self.seed, self.schedule = seed, schedule

    @classmethod
    def from_backbone(cls, backbone: MedViLL, **hyperparameters: Any) -> Self:
        """Make a task around a backbone object, which it shares.

        Args:
            backbone: the backbone.
            hyperparameters: the other arguments of the task.
        """
        task = cls(backbone=backbone.config(), **hyperparameters)
        task.backbone = backbone
        return task

    def metrics(self, stage: str) -> Mapping[str, MetricCollection]:
        """Fresh metrics of one stage, by the name of the group that :meth:`step` scores."""
        return {}

    def score_context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """What ``score_fn`` needs besides the rows of a stage, such as names and baselines; plain values."""
        return {}

    @abstractmethod
    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""

    # -- stages ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build the metrics and check that data and backbone speak of the same tokens and images."""
        self.val_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.train_metrics, self.val_metrics, self.test_metrics = (
            nn.ModuleDict({group: m.clone(prefix=f"{name}/") for group, m in self.metrics(name).items()})
            for name in ("train", "val", "test")
        )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, _Corpus):
            self._check_fit(data)
        for name, parameter in self.backbone.named_parameters():
            if name.startswith(_PARTS):
                parameter.requires_grad_(not name.startswith(self.unused_parameters))
        if stage == "fit":
            self._record_corpus(data)
            self.train()  # a loaded backbone is in evaluation mode, which Lightning keeps
        if self.compile_backbone:
            self.backbone.compile(dynamic=True)  # texts differ in length, films do not
            self.backbone.image_encoder.compile(dynamic=False)

    def _check_fit(self, data: _Corpus) -> None:
        if data.tokenizer != self.backbone.tokenizer:
            raise ValueError(
                f"the data's tokenizer has {data.tokenizer.vocab_size:,} tokens, the backbone's other "
                f"{self.backbone.tokenizer.vocab_size:,}: give both the same tokenizer"
            )
        size = self.backbone.hparams["image_size"]
        if data.image_size != size:
            raise ValueError(f"the data's image_size is {data.image_size}, the backbone's {size}: give both the same")
        limit = self.backbone.hparams["max_tokens"]
        longest = max((int(part.lengths.max()) - 1 for part in getattr(data, "datasets", {}).values()), default=0)
        if longest > limit:
            raise ValueError(
                f"the data has reports of {longest} word pieces, the backbone reads {limit}: cut them by max_tokens"
            )

    def _record_corpus(self, data: object) -> None:
        """Note in the backbone what it is trained on, for its model card; what does not say counts as credentialed."""
        pairs = len(data.datasets["train"]) if hasattr(data, "datasets") else 0
        corpus = TrainingCorpus(name="an unnamed corpus", pairs=pairs, credentialed=True)
        if isinstance(data, _Corpus):
            corpus = TrainingCorpus(name=data.name, pairs=pairs, credentialed=data.is_credentialed)
        if corpus not in self.backbone.trained_on:
            self.backbone.trained_on.append(corpus)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and sampling from the step alone, so that a resumed run draws what it would have."""
        torch.manual_seed(derive_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))

    def _run(self, batch: Batch, stage: str) -> Tensor:
        output = self.step(batch)
        if not torch.isfinite(output.loss):
            raise NonFiniteLossError(
                f"the {stage} loss is {output.loss.item()} at epoch {self.current_epoch}, step {self.global_step}; "
                f"the batch is {', '.join(batch['id'])}"
            )
        size = len(batch["id"])
        if stage == "train":
            self.log("train/loss", output.loss, prog_bar=True, batch_size=size)
            for name, loss in output.losses.items():
                self.log(f"train/{name}", loss, batch_size=size)
        else:
            mean: MeanMetric = getattr(self, f"{stage}_loss")
            terms = size if output.loss_weight is None else output.loss_weight
            mean.update(output.loss.detach().expand(terms))  # a weight is lost on a metric that disables its NaN check
            self.log(f"{stage}/loss", mean, prog_bar=True, batch_size=size)
            self._kept.append(output.results)
        for group, (preds, target) in output.metric_inputs.items():
            metrics = getattr(self, f"{stage}_metrics")[group]
            metrics.update(preds.detach(), target)
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=size)
        return output.loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss to descend."""
        return self._run(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the validation split."""
        self._run(batch, "val")

    def arrange_predictions(self, rows: Rows) -> Rows:
        """Put what ``predict`` gave, from all processes, into the order in which it is written."""
        return sorted(rows, key=lambda row: str(row["id"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the test split."""
        if batch_idx == 0:
            self.first_test_batch = batch
        self._run(batch, "test")

    def training_examples(self) -> Examples | None:
        """The training split, for baselines; None where the data has none."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "examples"):
            return None
        if "train" in data.datasets:
            return cast(Examples, data.datasets["train"].examples)
        try:
            return cast(Examples, data.examples("train"))
        except (FileNotFoundError, ValueError):
            return None

    # -- results of examples -----------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Every test run writes its results, unless the trainer was given a :class:`ResultTable` of its own."""
        return [] if any(isinstance(c, ResultTable) for c in self.trainer.callbacks) else [ResultTable()]  # type: ignore[attr-defined]

    def on_validation_epoch_start(self) -> None:
        """Forget the results of the epoch before."""
        self._kept: list[Mapping[str, Tensor | Sequence[Any]]] = []

    def on_test_epoch_start(self) -> None:
        """Forget the results of the test before."""
        self._kept = []

    def on_validation_epoch_end(self) -> None:
        """Score the validation split's results."""
        self._score_results("val")

    def on_test_epoch_end(self) -> None:
        """Score the test split's results and keep them as ``results``."""
        self.results = self._score_results("test")

    def finish_results(self, stage: str) -> Rows:
        """The rows of this process, when all batches of a stage are done."""
        return [row for columns in self._kept for row in to_rows(columns)]

    def _score_results(self, stage: str) -> Results:
        rows = sorted(gather(self.finish_results(stage), self.trainer), key=lambda row: str(row["id"]))
        results = Results(rows, {}, self.score_fn, self._describe())
        if rows and not self.trainer.sanity_checking:
            results.context = self.score_context(stage, rows)
            # All processes have the same rows, so the mean over processes changes nothing.
            self.log_dict({f"{stage}/{name}": value for name, value in results.scores().items()}, sync_dist=True)
        return results

    def _describe(self) -> dict[str, Any]:
        """Task, hyper-parameters and backbone, for the record beside the results."""
        backbone = {
            name: value if name != "tokenizer" else f"{self.backbone.tokenizer.vocab_size} tokens"
            for name, value in self.backbone.config().items()
        }
        hyperparameters = {name: value for name, value in self.hparams.items() if name != "backbone"}
        return {
            "task": f"{type(self).__module__}.{type(self).__qualname__}",
            "hyper_parameters": hyperparameters,
            "backbone": backbone,
            "trained_on": list(self.backbone.trained_on),
        }

    # -- optimiser -------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with an optional linear warm-up, then a rate that stays or falls linearly."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # Lightning does not clip gradients of a fused optimiser in mixed precision.
        fused = not (self.trainer.precision.endswith("-mixed") and self.trainer.gradient_clip_val)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """The share of the learning rate that one optimizer step takes."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return rising
        total = float(self.trainer.estimated_stepping_batches)
        return min(rising, max(0.0, (total - step) / max(1.0, total - self.warmup_steps)))

    # -- checkpoints -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint stand alone: its backbone is named by value, with the tokenizer and without files."""
        checkpoint["hyper_parameters"] = checkpoint.get("hyper_parameters", {}) | {
            "backbone": dict(self.backbone.config()),
            "backbone_ckpt": None,
        }
        checkpoint["trained_on"] = list(self.backbone.trained_on)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the backbone was trained on; refuse the checkpoint of another configuration.

        Raises:
            ValueError: if the checkpoint's backbone has other arguments, or its heads are those of another task.
        """
        theirs, ours = checkpoint.get("hyper_parameters", {}).get("backbone"), self.backbone.config()
        if theirs is None or "trained_on" not in checkpoint:
            raise ValueError("the checkpoint was not written by a medvill_pl task")
        pairs = {name: (theirs.get(name), ours.get(name)) for name in _ARCHITECTURE}
        strategies = [hparams.get("mask_strategy") for hparams in (checkpoint["hyper_parameters"], self.hparams)]
        if all(strategies):  # else it is of another task, see below
            pairs["mask_strategy"] = (strategies[0], strategies[1])
        differences = [
            "the tokenizer is another" if name == "tokenizer" else f"{name} is {there} there and {here} here"
            for name, (there, here) in pairs.items()
            if there != here
        ]
        if differences:
            raise ValueError(f"the checkpoint is of another configuration: {'; '.join(differences)}")
        if _heads(checkpoint["state_dict"]) != _heads(self.state_dict()):
            raise ValueError(
                f"the checkpoint is of another task than {type(self).__name__}: to start from its backbone, give it as "
                "backbone_ckpt"
            )
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._warn_of_kept(checkpoint["hyper_parameters"])
        recorded = list(checkpoint["trained_on"])
        self.backbone.trained_on = recorded + [now for now in self.backbone.trained_on if now not in recorded]

    def _warn_of_kept(self, theirs: Mapping[str, Any]) -> None:
        """Say which values a resumed run takes from the checkpoint's optimizer, whatever the configuration says."""
        changed = [name for name in _OF_OPTIMIZER if name in theirs and theirs[name] != self.hparams.get(name)]
        kept = [f"{name} {theirs[name]} (not {self.hparams.get(name)})" for name in changed]
        if kept:
            rank_zero_warn(
                f"a resumed run keeps the checkpoint's {', '.join(kept)}: to change it, start a new run (backbone_ckpt)"
            )


def make_head(hidden_size: int, num_outputs: int) -> nn.Linear:
    """A linear head, drawn as BERT draws its weights."""
    head = nn.Linear(hidden_size, num_outputs)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def to_rows(columns: Mapping[str, Tensor | Sequence[Any]]) -> list[dict[str, Any]]:
    """Turn columns of one length into one mapping an example, of plain values."""
    lists = [
        column.detach().cpu().float().tolist()
        if isinstance(column, Tensor) and column.is_floating_point()
        else column.tolist()
        if isinstance(column, Tensor)
        else column
        for column in columns.values()
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def mask_batch(
    batch: Batch, tokenizer: ReportTokenizer, predicted: Tensor, probability: float, ends: Tensor | None = None
) -> Batch:
    """Add hidden words to a batch that lies on the CPU; each pair's draw follows from its seed (see ``mask_tokens``).

    Args:
        batch: pairs.
        tokenizer: the backbone's.
        predicted: True where the hidden words are to be predicted, bool, shape ``(B,)``.
        probability: share of word pieces to hide.
        ends: True where SEP_L may be hidden, bool, shape ``(B,)``.
    """
    masked = mask_tokens(batch["input_ids"], batch["text_mask"], batch["seed"], tokenizer, predicted, probability, ends)
    hidden = {"mlm_input_ids": masked.input_ids, "mlm_positions": masked.positions, "mlm_targets": masked.targets}
    return Batch(**{**batch, **hidden})  # type: ignore[typeddict-item]


def pin_masked_tokens(batch: Batch) -> Batch:
    """Let the hidden words travel to a GPU without waiting, as a loader's pinned tensors do."""
    for name in ("mlm_input_ids", "mlm_positions", "mlm_targets"):
        batch[name] = batch[name].pin_memory()
    return batch


def need_negatives(task: LightningModule) -> None:
    """Refuse data without non-matching pairs.

    Raises:
        ValueError: if the data module pairs every image with its own report only.
    """
    if getattr(getattr(task.trainer, "datamodule", None), "negatives", "") == "none":
        raise ValueError("image-report matching needs non-matching pairs: set the data module's negatives to 'labels'")


_PARTS = ("text_cls_position_embedding", "pooler", "mlm_head", "report_embedding.position", "report_embedding.semantic")
"""The parts of a backbone that not every task uses."""
_OF_OPTIMIZER = ("lr", "weight_decay", "warmup_steps")
_ARCHITECTURE = (
    "image_encoder",
    "image_size",
    "tokenizer",
    "max_tokens",
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
)
"""The arguments of a backbone that its weights depend on."""


def _heads(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names and shapes of what a task adds to its backbone."""
    return {name: weight.shape for name, weight in weights.items() if not name.startswith("backbone.")}


def load_backbone(source: str) -> MedViLL:
    """Load a pre-trained backbone.

    Args:
        source: a task's checkpoint (``.ckpt``), a folder that ``save_pretrained`` wrote, or a hub name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is no task's checkpoint.
    """
    if not source.endswith(".ckpt"):
        return MedViLL.from_pretrained(source)
    if not Path(source).is_file():
        raise FileNotFoundError(f"backbone_ckpt: no such file: {source}")
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
        config, trained_on = checkpoint["hyper_parameters"]["backbone"], list(checkpoint["trained_on"])
    except Exception as error:  # each kind of broken file has its own
        raise ValueError(f"backbone_ckpt: {source} was not written by a medvill_pl task") from error
    backbone = MedViLL(**config)
    prefix = "backbone."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    load_exactly(backbone, weights, source)
    backbone.trained_on = trained_on
    return backbone
