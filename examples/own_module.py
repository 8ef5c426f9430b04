"""Use the backbone as a part of your own LightningModule: is the heart enlarged, from the image alone?

python examples/own_module.py                              # a new small backbone
python examples/own_module.py --backbone demo/backbone     # one that save_pretrained wrote
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from medvill_pl import FINDINGS, BackboneConfig, Batch, MedViLL, SyntheticDataModule

SMALL: BackboneConfig = {
    "image_encoder": "resnet_tiny",
    "image_size": 64,
    "tokenizer": "synthetic",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 64,
}


class HeartModel(LightningModule):
    """A backbone and a linear head on CLS. Nothing of it is special to this library."""

    def __init__(self, backbone: BackboneConfig, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()  # plain values, so load_from_checkpoint needs nothing else
        self.backbone, self.lr = MedViLL(**backbone), lr
        self.head = nn.Linear(self.backbone.hparams["hidden_size"], 1)
        self.auroc = BinaryAUROC()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(B,)``, of images (uint8, shape ``(B, 1, H, W)``): a text of length 0 is the image alone."""
        no_text = torch.empty(len(images), 0, dtype=torch.long, device=images.device)
        output = self.backbone(images=images, input_ids=no_text, text_mask=no_text.bool())
        logits: Tensor = self.head(output.pooled).squeeze(1)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Descend the binary cross-entropy."""
        target = (batch["labels"][:, FINDINGS.index("Cardiomegaly")] == 1).float()
        return nn.functional.binary_cross_entropy_with_logits(self(batch["image"]), target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the validation split."""
        self.auroc.update(self(batch["image"]), batch["labels"][:, FINDINGS.index("Cardiomegaly")] == 1)
        self.log("val/auroc", self.auroc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train head and backbone together."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main() -> None:
    """Train on the embedded corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="a folder or hub name of a saved backbone (default: a new one)")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    seed_everything(0)
    backbone = MedViLL.from_pretrained(options.backbone) if options.backbone else MedViLL(**SMALL)
    model = HeartModel(backbone.config())
    model.backbone = backbone.train()  # with its weights; a loaded one is in evaluation mode
    data = SyntheticDataModule(options.pairs, num_val=200, image_size=backbone.hparams["image_size"], batch_size=16)
    backbone.trained_on.append({"name": data.name, "pairs": options.pairs, "credentialed": data.is_credentialed})
    trainer = Trainer(max_epochs=options.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("runs/heart.ckpt")
    print(f"AUROC of an enlarged heart: {float(trainer.callback_metrics['val/auroc']):.3f} (chance is 0.5)")


if __name__ == "__main__":
    main()
