"""The image encoder's own findings: a linear head on the mean of its feature map, without a transformer."""

from typing import Any

import torch
from torch import Tensor, nn

from medvill_pl.batch import FINDINGS, Batch
from medvill_pl.models.image_encoder import ImageEncoder, ImageEncoderName, make_cnn
from medvill_pl.models.initial_weights import load_cnn
from medvill_pl.models.modes import evaluating
from medvill_pl.tasks.findings import FindingsTask, Uncertain
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput
from medvill_pl.tokenizer import MAX_TOKENS, InputSpec, ReportTokenizer

RARE, FREQUENT = 0.005, 0.95
"""Tokens that fewer, or more, of the training reports have are not predicted: there is nothing to learn from them."""
REPORTS_COUNTED = 10_000
"""So many training reports, spread evenly over the split, are enough to know these shares."""


class ImageClassifier(FindingsTask):
    """Trains an image encoder to tell which findings an image shows, from the mean of its feature map.

    It is the fairest baseline of a backbone with the same image encoder, and a way to train one where no weights are at
    hand to start from: ``backbone.image_encoder.load_state_dict(classifier.image_encoder.state_dict())``. Findings,
    metrics and results are those of :class:`ClassificationTask` with ``use_report=False``, so that the two compare.

    With ``token_weight``, training also predicts which tokens the report of each image has. The loss is then

        mean over findings of BCE + ``token_weight`` / 14 * sum over tokens of BCE,

    so that ``token_weight`` is the weight of a token beside that of a finding. Tokens that fewer than 0.5 % or more
    than 95 % of the training reports have are left out.

    Args:
        image_encoder: the CNN.
        image_size: side of the square images in pixels.
        image_encoder_weights: initial weights of the CNN, as :class:`MedViLL` takes them; None for random ones.
        channels_last: run the CNN in the channels-last memory format.
        token_weight: weight of a token of the report; 0 learns from the findings alone.
        tokenizer: of the reports, what :meth:`ReportTokenizer.load` takes; None lets the data say it, if
            ``token_weight`` is 0.
        max_tokens: longer reports are truncated to this many tokens.
        max_shift: in training, the images of a batch are shifted by up to so many pixels, drawn for each batch; what
            leaves the image on one side comes in on the other.
        uncertain: what a finding that is uncertain (-1) counts as.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant``, or ``linear``, down to 0 at the end of the run.
        seed: seed of the shifts.

    Raises:
        ValueError: if ``token_weight`` or ``max_shift`` is negative, or tokens are predicted without a tokenizer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from medvill_pl import SyntheticDataModule
        >>> task = ImageClassifier("resnet_tiny", image_size=64, token_weight=0.2, tokenizer="synthetic", lr=1e-2)
        >>> trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
        ...                   enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(task, datamodule=SyntheticDataModule(num_train=16, num_val=4, batch_size=8))
        >>> task.predict_images(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 14])
    """

    is_predicted: Tensor

    def __init__(
        self,
        image_encoder: ImageEncoderName = "resnet50",
        image_size: int = 512,
        image_encoder_weights: str | None = None,
        channels_last: bool = False,
        token_weight: float = 0.0,
        tokenizer: str | None = None,
        max_tokens: int = MAX_TOKENS,
        max_shift: int = 0,
        uncertain: Uncertain = "negative",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_steps, schedule, seed)
        self.save_hyperparameters()
        if token_weight < 0 or max_shift < 0:
            raise ValueError(f"token_weight and max_shift must be 0 or more, not {token_weight} and {max_shift}")
        if token_weight and tokenizer is None:
            raise ValueError("token_weight predicts the tokens of reports: give their tokenizer")
        if tokenizer is not None and tokenizer.startswith("{"):
            self.save_hyperparameters({"tokenizer": "embedded"})  # for records; a checkpoint has it whole
        self.token_weight, self.max_shift, self.image_size = token_weight, max_shift, image_size
        tokens = None if tokenizer is None else ReportTokenizer.load(tokenizer)
        self._spec = None if tokens is None else InputSpec(tokens, image_size, max_tokens)
        cnn = make_cnn(image_encoder)
        if image_encoder_weights is not None:
            load_cnn(cnn, image_encoder, image_encoder_weights)
        self.image_encoder = ImageEncoder(cnn)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.image_encoder.to(memory_format=self._memory_format)
        self.head = nn.Linear(self.image_encoder.channels, len(FINDINGS))
        self.score_findings_as(uncertain)
        self.token_head: nn.Linear | None = None
        if token_weight and tokens is not None:
            self.token_head = nn.Linear(self.image_encoder.channels, tokens.vocab_size)
            self.register_buffer("is_predicted", torch.zeros(tokens.vocab_size, dtype=torch.bool))

    @property
    def input_spec(self) -> InputSpec | None:
        """Tokenizer, image size and longest text; None without a tokenizer, which the data must then be told."""
        return self._spec

    def setup(self, stage: str) -> None:
        """Build what every task of findings needs, and choose the tokens that are predicted.

        Raises:
            ValueError: if the images have another size, or there are no training reports to choose tokens from.
        """
        super().setup(stage)
        if self.data is not None and self.data.image_size != self.image_size:
            raise ValueError(f"the data's image_size is {self.data.image_size}, the model's {self.image_size}")
        if stage == "fit" and self.token_head is not None:
            self._choose_tokens()

    def _choose_tokens(self) -> None:
        examples = self.data.training_examples() if self.data else None
        if examples is None or self._spec is None:
            raise ValueError(
                "token_weight predicts the tokens of the training reports, which loaders of your own do not show: pass "
                "a data module (trainer.fit(task, datamodule=data)), or set token_weight to 0"
            )
        reports = examples.reports[:: max(1, len(examples.reports) // REPORTS_COUNTED)]
        counts = torch.zeros(len(self.is_predicted))
        for ids in self._spec.tokenizer.encode(reports):
            counts[list(set(ids))] += 1
        share = counts / len(reports)
        self.is_predicted.copy_((share > RARE) & (share < FREQUENT))

    # -- computing -------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Score the findings of each image.

        Returns:
            Logits, shape ``(B, 14)``.
        """
        logits: Tensor = self.head(self._features(batch["image"]))
        return logits

    def _features(self, images: Tensor) -> Tensor:
        """Mean over the feature map, shape ``(B, channels)``."""
        features: Tensor = self.image_encoder(images.contiguous(memory_format=self._memory_format)).mean((2, 3))
        return features

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        if not self.training:
            return super().step(batch)
        features = self._features(self._shifted(batch["image"]))
        output = self.score(self.head(features), batch)
        if self.token_head is None:
            return output
        tokens = self._token_loss(features, batch)
        loss = output.loss + self.token_weight / len(FINDINGS) * tokens
        return StepOutput(loss, losses={"findings_loss": output.loss, "token_loss": tokens})

    def _shifted(self, images: Tensor) -> Tensor:
        if not self.max_shift:
            return images
        # Drawn on the CPU, so that no device has to be waited for.
        down, right = torch.randint(-self.max_shift, self.max_shift + 1, (2,)).tolist()
        return images.roll((down, right), (2, 3))

    def _token_loss(self, features: Tensor, batch: Batch) -> Tensor:
        """Sum over the predicted tokens of their binary cross-entropy, mean over images."""
        assert self.token_head is not None
        target = features.new_zeros(len(features), len(self.is_predicted), dtype=torch.float32)
        target.scatter_(1, batch["input_ids"], 1.0)  # padding and SEP_L too, which are never predicted
        predicted = self.is_predicted
        logits = nn.functional.linear(features, self.token_head.weight[predicted], self.token_head.bias[predicted])
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target[:, predicted], reduction="sum")
        return loss / len(features)

    @torch.no_grad()
    def predict_images(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """How likely each finding is on images, whatever the mode of the task; it is left as it was.

        Args:
            images: uint8 in 0..255 or floating point in 0..1, shape ``(N, 1, H, W)``.
            batch_size: how many go through the CNN at a time.

        Returns:
            Probabilities, float32, shape ``(N, 14)``, on the task's device.
        """
        with evaluating(self):
            parts = [self.head(self._features(part.to(self.device))) for part in torch.split(images, batch_size)]
        return torch.cat(parts).float().sigmoid()

    # -- checkpoints -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint stand alone: its tokenizer is there by value, and no file of weights is named."""
        by_value: dict[str, Any] = {"image_encoder_weights": None}
        if self._spec is not None:
            by_value["tokenizer"] = self._spec.tokenizer.to_json()
        checkpoint["hyper_parameters"] = checkpoint.get("hyper_parameters", {}) | by_value

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another configuration.

        Raises:
            ValueError: if the checkpoint's image encoder or image size is another, or what uncertain findings count as.
        """
        theirs = checkpoint.get("hyper_parameters", {})
        changed = [
            f"{name} is {theirs[name]} there and {self.hparams[name]} here"
            for name in ("image_encoder", "image_size", "uncertain")
            if name in theirs and theirs[name] != self.hparams[name]
        ]
        if changed:
            raise ValueError(f"the checkpoint is of another configuration: {'; '.join(changed)}")
