"""Write your own task: how many findings does an image show?

python examples/own_task.py [PAIRS]                                            # by import
medvill fit -c examples/own_task.yaml                                          # by class_path, with all that jobs do
"""

import sys
from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from medvill_pl import BackboneConfig, BackboneTask, Batch, StepOutput, SyntheticDataModule


class FindingCountTask(BackboneTask):
    """Counts positive findings by Poisson regression on CLS; stages, optimizer, checkpoints are those of every task."""

    monitor, mode = "val/mae", "min"
    # What the loss does not reach, so that DDP does not wait for its gradients: no text is read.
    unused_parameters = (
        "text_cls_position_embedding",
        "mlm_head",
        "report_embedding.position",
        "report_embedding.semantic",
    )

    def __init__(
        self, backbone: BackboneConfig | None = None, backbone_ckpt: str | None = None, lr: float = 1e-3
    ) -> None:
        super().__init__(backbone, backbone_ckpt, lr=lr)
        self.save_hyperparameters()
        self.head = nn.Linear(self.backbone.hparams["hidden_size"], 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logarithm of the expected number of findings, shape ``(B,)``, from the image alone."""
        no_text = batch["input_ids"][:, :0]
        output = self.backbone(images=batch["image"], input_ids=no_text, text_mask=no_text.bool())
        log_rate: Tensor = self.head(output.pooled).squeeze(1)
        return log_rate

    def step(self, batch: Batch) -> StepOutput:
        """Loss, and what the metrics and the results on disk are made of."""
        log_rate, count = self(batch).float(), (batch["labels"][:, 1:] == 1).sum(1).float()  # column 0 is No Finding
        loss = nn.functional.poisson_nll_loss(log_rate, count)
        results = {"id": batch["id"], "prediction": log_rate.exp(), "count": count}
        return StepOutput(loss, {"count": (log_rate.exp(), count)}, results=results)

    def metrics(self, stage: str) -> Mapping[str, MetricCollection]:
        """The mean absolute error, logged as ``val/mae`` and ``test/mae``."""
        return {"count": MetricCollection({"mae": MeanAbsoluteError()})}

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, object]]:
        """Rows of ``predictions.csv``."""
        return [{"id": i, "count": c} for i, c in zip(batch["id"], self(batch).float().exp().tolist(), strict=True)]


def main(pairs: int = 2000) -> None:
    """Train and test on the embedded corpus."""
    small: BackboneConfig = {"image_encoder": "resnet_tiny", "image_size": 64, "tokenizer": "synthetic"}
    sizes: BackboneConfig = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
    task = FindingCountTask(small | sizes)
    data = SyntheticDataModule(pairs, num_val=200, num_test=200, batch_size=16)
    trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False, default_root_dir="runs/own-task")
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data)  # and writes runs/own-task/test.parquet


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
