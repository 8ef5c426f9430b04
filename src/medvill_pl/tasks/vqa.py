"""Visual question answering: choosing among the answers of the training split (MedViLL, Sec. IV-C.3)."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from medvill_pl.batch import Batch
from medvill_pl.data.examples import Questions
from medvill_pl.evaluation.statistics import Rows
from medvill_pl.evaluation.vqa import most_frequent_answers
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.tasks.backbone_task import BackboneTask, make_head
from medvill_pl.tasks.optimizers import Schedule
from medvill_pl.tasks.step import StepOutput


class VQATask(BackboneTask):
    """Fine-tunes a backbone to answer questions about images: one class an answer, on CLS.

    The classes are the answers of the training split. An answer outside of them counts as wrong; how many such there
    are is given as a ceiling. In a test, accuracy with a black and with another question's image stands beside the
    real one, which tells how much the questions alone give away.

    Args:
        backbone: arguments of :class:`MedViLL`.
        backbone_ckpt: start from this backbone instead.
        answers: the classes; None takes those of the training split, or of the checkpoint.
        lr: learning rate of AdamW.
        weight_decay: of all weights but biases, norms and other vectors.
        warmup_steps: optimizer steps over which the rate rises linearly.
        schedule: the rate after that: ``constant`` (the paper), or ``linear``, down to 0 at the end of the run.
        compile: run the backbone through ``torch.compile``.
        seed: seed of dropout.
        freeze_backbone: train the heads alone (a linear probe); the rest of the backbone stays in evaluation mode.

    Example:
        >>> tiny = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic", "hidden_size": 32,
        ...         "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        >>> task = VQATask(tiny, answers=["no", "yes"])
        >>> task.answers
        ['no', 'yes']
    """

    monitor, mode = "val/accuracy", "max"
    score_fn = "medvill_pl.evaluation.vqa.vqa_scores"
    unused_parameters = ("text_cls_position_embedding", "mlm_head")

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        backbone_ckpt: str | None = None,
        answers: list[str] | None = None,
        lr: float = 3e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        compile: bool = False,
        seed: int = 0,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__(
            backbone, backbone_ckpt, lr, weight_decay, warmup_steps, schedule, compile, seed, freeze_backbone
        )
        self.save_hyperparameters()
        self.answers: list[str] = []
        self.head: nn.Linear | None = None
        if answers:
            self._know(answers)

    def _know(self, answers: Sequence[str]) -> None:
        """Take over the classes and make a head for them."""
        self.answers = list(answers)
        self._class_of = {answer: index for index, answer in enumerate(self.answers)}
        self.head = make_head(self.backbone.hparams["hidden_size"], len(self.answers)).to(self.device)
        # All answers are equally likely at first. With a bias of 0, the first steps would only learn that nearly all
        # answers are wrong, and press the backbone's CLS into one direction for all questions.
        nn.init.constant_(self.head.bias, -math.log(max(1, len(self.answers) - 1)))

    def setup(self, stage: str) -> None:
        """Build what every task needs, and learn the answers of the training split.

        Raises:
            ValueError: if the data has no questions, or training has no answers.
        """
        super().setup(stage)
        if self.data is not None and not self.data.has_questions:
            raise ValueError(
                f"{type(self.data).__name__} has no questions: give a data module that has, or to predict on a folder "
                "of images a question as its text"
            )
        if self.head is None:
            examples = self._training_questions()
            answers = sorted(set(examples.answers)) if examples else []
            if stage == "fit" and not answers:
                raise ValueError("the training split has no answers to learn")
            if answers:
                self._know(answers)

    def _training_questions(self) -> Questions | None:
        examples = self.data.training_examples() if self.data and self.data.has_questions else None
        return cast(Questions, examples) if examples is not None else None

    def forward(self, images: Tensor, batch: Batch) -> Tensor:
        """Score all answers to the batch's questions about the given images.

        Returns:
            Logits, shape ``(B, number of answers)``.

        Raises:
            ValueError: if the task does not know any answers yet.
        """
        if self.head is None:
            raise ValueError("this task knows no answers yet: train it, or load a checkpoint")
        output = self.backbone(images=images, input_ids=batch["input_ids"], text_mask=batch["text_mask"])
        logits: Tensor = self.head(output.pooled)
        return logits

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        logits = self(batch["image"], batch).float()
        known = [self._class_of.get(answer, -1) for answer in batch["answer"]]
        target = torch.zeros_like(logits)
        rows = [row for row, index in enumerate(known) if index >= 0]
        target[rows, [index for index in known if index >= 0]] = 1.0
        # Summed over the answers, as one example's loss.
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(known)
        if self.training:
            return StepOutput(loss)
        results: dict[str, Any] = {name: batch[name] for name in _KEPT}  # type: ignore[literal-required]
        results |= {"question": batch["report"], "is_known": [index >= 0 for index in known]}
        results["prediction"] = self._best(logits)
        if "other_image" in batch:
            results["prediction_blank"] = self._best(self(torch.zeros_like(batch["image"]), batch))
            results["prediction_shuffled"] = self._best(self(batch["other_image"], batch))
        return StepOutput(loss, results=results)

    def _best(self, logits: Tensor) -> list[str]:
        return [self.answers[index] for index in logits.argmax(1).tolist()]

    def score_context(self, stage: str, rows: Rows) -> dict[str, Any]:
        """The most_frequent training answers, as a baseline."""
        examples = self._training_questions()
        most_frequent = most_frequent_answers(examples.answers, examples.answer_types) if examples is not None else None
        return {"most_frequent": most_frequent}

    def example_rows(self, batch: Batch) -> list[dict[str, object]]:
        """What a table shows of a batch: question, answer, and the top answer with its probability."""
        return [
            {
                **{k: row[k] for k in ("id", "question")},
                "answer": answer,
                "prediction": row["answer_1"],
                "probability": row["probability_1"],
            }
            for row, answer in zip(self.predict_step(batch, 0), batch["answer"], strict=True)
        ]

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Answer the questions: rows with ``id``, ``question`` and the top five answers with probabilities."""
        best = self(batch["image"], batch).float().sigmoid().topk(min(5, len(self.answers)), dim=1)
        rows = []
        for i, question, indices, values in zip(
            batch["id"], batch["report"], best.indices.tolist(), best.values.tolist(), strict=True
        ):
            row: dict[str, Any] = {"id": i, "question": question}
            for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
                row |= {f"answer_{rank}": self.answers[index], f"probability_{rank}": value}
            rows.append(row)
        return rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the answers with the weights of their head."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["answers"] = self.answers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the checkpoint's answers; a resumed run must have the same ones.

        Raises:
            ValueError: if a run is resumed with other answers.
        """
        answers = checkpoint.get("hyper_parameters", {}).get("answers") or []
        is_resumed = self._trainer is not None and self.trainer.state.fn == "fit"
        if is_resumed and answers and answers != self.answers:
            raise ValueError(
                f"the checkpoint knows {len(answers)} answers, the training split has {len(self.answers)} others: "
                "resume with the same data, or start a new run from its backbone (backbone_ckpt)"
            )
        if answers and answers != self.answers:
            self._know(answers)
        super().on_load_checkpoint(checkpoint)


_KEPT = ("id", "answer", "answer_type", "question_type", "organ")
