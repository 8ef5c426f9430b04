"""Write your own task: how many findings does a film show?

python examples/own_task.py                                                    # by import
medvill fit -c examples/own_task.yaml -c tasks/_trainer/cpu_debug.yaml         # by class_path, with all that jobs do
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from medvill_pl import FINDINGS, BackboneConfig, BaseTask, Batch, StepOutput, SyntheticDataModule

NOT_COUNTED = ("No Finding", "Support Devices")


def count_scores(rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> dict[str, float]:
    """Mean absolute error of the model, and of the training mean as a baseline."""
    errors = [abs(row["prediction"] - row["count"]) for row in rows]
    baseline = [abs(context["mean"] - row["count"]) for row in rows]
    return {"mae": sum(errors) / len(rows), "mean_mae": sum(baseline) / len(rows)}


class FindingCountTask(BaseTask):
    """Counts positive findings by Poisson regression on CLS; stages, optimiser, checkpoints are those of every task."""

    score_fn = f"{__name__}.count_scores"  # scores validation and test from what _step keeps of each example
    unused_parameters = (
        "text_cls_position_embedding",
        "mlm_head",
        "report_embedding.position",
        "report_embedding.semantic",
    )

    def __init__(
        self, backbone: BackboneConfig | None = None, backbone_ckpt: str | None = None, lr: float = 1e-3, seed: int = 0
    ) -> None:
        super().__init__(backbone, backbone_ckpt, lr, weight_decay=0.01, warmup_steps=0, compile=False, seed=seed)
        backbone = dict(self.backbone.hparams)  # type: ignore[assignment]
        self.save_hyperparameters()
        self.head = nn.Linear(self.backbone.hparams["hidden_size"], 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logarithm of the expected number of findings, shape ``(B,)``, from the image alone."""
        no_text = batch["input_ids"][:, :0]
        output = self.backbone(images=batch["image"], input_ids=no_text, text_mask=no_text.bool())
        log_rate: Tensor = self.head(output.pooled).squeeze(1)
        return log_rate

    def step(self, batch: Batch) -> StepOutput:
        """Compute loss, predictions and targets of a batch."""
        counted = [column for column, finding in enumerate(FINDINGS) if finding not in NOT_COUNTED]
        log_rate, count = self(batch).float(), (batch["labels"][:, counted] == 1).sum(1)
        loss = nn.functional.poisson_nll_loss(log_rate, count.float())
        return StepOutput(loss, results={"id": batch["id"], "prediction": log_rate.exp(), "count": count})

    def score_context(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The mean of the training split, which is kept beside the rows."""
        examples = self.training_examples()
        counted = [column for column, finding in enumerate(FINDINGS) if finding not in NOT_COUNTED]
        return {"mean": float((examples.labels[:, counted] == 1).sum(1).mean()) if examples else 0.0}

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Rows of ``predictions.csv``."""
        return [{"id": i, "count": c} for i, c in zip(batch["id"], self(batch).float().exp().tolist(), strict=True)]


def main() -> None:
    """Train and test on the embedded corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    options = parser.parse_args()
    seed_everything(0)
    small: BackboneConfig = {
        "image_encoder": "resnet_tiny",
        "image_size": 64,
        "tokenizer": "synthetic",
        "hidden_size": 32,
    }
    task = FindingCountTask(small | {"num_layers": 2, "num_heads": 2, "intermediate_size": 64})
    data = SyntheticDataModule(options.pairs, num_val=200, num_test=200, image_size=64, batch_size=16)
    trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False, default_root_dir="runs/own-task")
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data)  # and writes runs/own-task/test.parquet


if __name__ == "__main__":
    main()
