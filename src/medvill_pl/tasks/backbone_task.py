"""A task on top of a MedViLL backbone: which parts of it are trained, and checkpoints that stand alone."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from medvill_pl.batch import Batch
from medvill_pl.masks import MaskStrategy
from medvill_pl.models.flops import forward_flops
from medvill_pl.models.medvill import BackboneConfig, MedViLL, TrainingCorpus
from medvill_pl.tasks.attention import ImageAttention, last_layer_maps
from medvill_pl.tasks.base import BaseTask
from medvill_pl.tasks.checkpoints import differences, heads, load_backbone, read_checkpoint, renamed
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tokenizer import InputSpec, ReportTokenizer

_OF_OPTIMIZER = ("lr", "weight_decay", "warmup_steps")


class BackboneTask(BaseTask):
    """A task with a :class:`MedViLL` as ``backbone``; a subclass adds its heads and its :meth:`step`.

    Parts of the backbone that are switched off here, because the loss does not reach them or it is frozen, are
    switched on again when a stage ends; what a user froze stays frozen.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead: a task's checkpoint, a folder that ``save_pretrained`` wrote,
            or a hub name.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout, sampling and draws.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Raises:
        ValueError: if both ``backbone`` and ``backbone_ckpt`` are given, or weights do not fit.

    Example:
        >>> from medvill_pl import Batch, StepOutput
        >>> class NormalityTask(BackboneTask):
        ...     def __init__(self, backbone: BackboneConfig | None = None, backbone_ckpt: str | None = None) -> None:
        ...         super().__init__(backbone, backbone_ckpt, lr=1e-4)
        ...         self.save_hyperparameters()
        ...         self.head = make_head(self.backbone.hparams["hidden_size"], 1)
        ...     def step(self, batch: Batch) -> StepOutput:
        ...         output = self.backbone(
        ...             images=batch["image"], input_ids=batch["input_ids"], text_mask=batch["text_mask"]
        ...         )
        ...         target = (batch["labels"][:, :1] == 1).float()
        ...         loss = nn.functional.binary_cross_entropy_with_logits(self.head(output.pooled), target)
        ...         return StepOutput(loss)
        >>> task = NormalityTask({"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic",
        ...                       "hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64})
        >>> task.input_spec.image_size
        64
    """

    unused_parameters: tuple[str, ...] = ("text_cls_position_embedding", "pooler", "mlm_head")
    """Parts of the backbone that the loss does not reach: without a gradient, DDP would take them for a mistake."""
    head_parameters: tuple[str, ...] = ()
    """Parts of the backbone that are a head of this task: trained even where the backbone is frozen."""
    fixed_hyperparameters: tuple[str, ...] = ()
    """Arguments that change what the input or the heads mean: a checkpoint with others is refused."""

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_steps, schedule, seed)
        if backbone_ckpt is not None and backbone is not None:
            raise ValueError("give either backbone or backbone_ckpt: a checkpoint brings its own configuration")
        self.backbone = MedViLL(**(backbone or {})) if backbone_ckpt is None else load_backbone(backbone_ckpt)
        self.compile_backbone, self.freeze_backbone = compile, freeze_backbone
        self._switched_off: list[nn.Parameter] = []

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

    @property
    def input_spec(self) -> InputSpec:
        """Tokenizer, image size and longest text of the backbone."""
        return self.backbone.input_spec

    def setup(self, stage: str) -> None:
        """Switch off the parts that are not trained, note the corpus, and compile."""
        self._switch_on()  # where an error kept an earlier stage from its end
        for name, parameter in self.backbone.named_parameters():
            is_frozen = self.freeze_backbone and not name.startswith(self.head_parameters)
            if parameter.requires_grad and (is_frozen or name.startswith(self.unused_parameters)):
                parameter.requires_grad_(False)
                self._switched_off.append(parameter)
        super().setup(stage)
        self.save_hyperparameters({"backbone": dict(self.backbone.hparams)})  # for loggers: as it is built, all values
        if stage == "fit":
            self._record_corpus()
        if self.compile_backbone:
            self.backbone.compile(dynamic=True)  # texts differ in length, images do not
            self.backbone.image_encoder.compile(dynamic=False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in evaluation mode, its heads have no modes."""
        super().train(mode)
        if mode and self.freeze_backbone:
            self.backbone.eval()
        return self

    def teardown(self, stage: str) -> None:
        """Switch on again what :meth:`setup` switched off."""
        super().teardown(stage)
        self._switch_on()

    def _switch_on(self) -> None:
        for parameter in self._switched_off:
            parameter.requires_grad_(True)
        self._switched_off = []

    def _record_corpus(self) -> None:
        """Note in the backbone what it is trained on, for its model card; what does not say counts as credentialed."""
        corpus = TrainingCorpus(name="an unnamed corpus", pairs=0, credentialed=True)
        if self.data is not None:
            pairs = len(self.data.datasets["train"]) if "train" in self.data.datasets else 0
            corpus = TrainingCorpus(name=self.data.name, pairs=pairs, credentialed=self.data.is_credentialed)
        if corpus not in self.backbone.trained_on:
            self.backbone.trained_on.append(corpus)

    @property
    def tokenizer(self) -> ReportTokenizer:
        """The backbone's."""
        return self.backbone.tokenizer

    def image_attention(self, batch: Batch) -> ImageAttention:
        """Where CLS looks on the images of a batch, as the task runs its backbone: bidirectionally, with the text."""
        inputs = batch["image"], batch["input_ids"], batch["text_mask"]
        return ImageAttention(last_layer_maps(self.backbone, *inputs, MaskStrategy.BIDIRECTIONAL)[:, 0])

    def flops_per_pair(self, num_text: int) -> int:
        """Floating point operations of the forward pass of one pair in training.

        Args:
            num_text: text tokens, padding included.
        """
        return forward_flops(self.backbone, None, num_text)

    def describe(self) -> dict[str, Any]:
        """The backbone's arguments and what it was trained on, for the record beside the results."""
        tokenizer = {"tokenizer": f"{self.backbone.tokenizer.vocab_size} tokens"}
        return {"backbone": {**self.backbone.config(), **tokenizer}, "trained_on": list(self.backbone.trained_on)}

    # -- checkpoints -----------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", strict: bool = True, **arguments: Any
    ) -> Self:
        """Load a task from its checkpoint, also from one that an earlier version wrote.

        Args:
            checkpoint_path: a file that a trainer saved; only tensors and plain values are read from it.
            map_location: where the tensors go, as ``torch.load`` takes it.
            strict: refuse weights that are missing or unknown.
            arguments: arguments of the task to change.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no task's checkpoint, or of another configuration.
        """
        checkpoint = read_checkpoint(str(checkpoint_path), "checkpoint", map_location)
        accepted = signature(cls).parameters  # a task may fix its backbone instead of taking it as an argument
        saved = {name: value for name, value in checkpoint["hyper_parameters"].items() if name in accepted}
        task = cls(**(saved | arguments))
        task.on_load_checkpoint(checkpoint)
        task.load_state_dict(checkpoint["state_dict"], strict=strict)
        return task

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint stand alone: its backbone is named by value, with the tokenizer and without files."""
        by_value = {"backbone": dict(self.backbone.config()), "backbone_ckpt": None}
        checkpoint["hyper_parameters"] = checkpoint.get("hyper_parameters", {}) | by_value
        checkpoint["trained_on"] = list(self.backbone.trained_on)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the backbone was trained on; refuse the checkpoint of another configuration.

        Raises:
            ValueError: if the checkpoint's backbone or inputs are others, or its heads are those of another task.
        """
        checkpoint.update(renamed(checkpoint, "the checkpoint"))
        theirs = checkpoint["hyper_parameters"]
        changed = differences(theirs, self.hparams, self.backbone, self.fixed_hyperparameters)
        if changed:
            raise ValueError(f"the checkpoint is of another configuration: {'; '.join(changed)}")
        if heads(checkpoint["state_dict"]) != heads(self.state_dict()):
            raise ValueError(
                f"the checkpoint is of another task than {type(self).__name__}: to start from its backbone, give it as "
                "backbone_ckpt"
            )
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._warn_of_kept(theirs)
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
    """A linear head, drawn as BERT draws its weights.

    Example:
        >>> make_head(32, 14)
        Linear(in_features=32, out_features=14, bias=True)
    """
    head = nn.Linear(hidden_size, num_outputs)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
