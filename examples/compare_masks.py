"""Pre-train under every mask strategy with the same data, seed and steps, and print the validation figures.

python examples/compare_masks.py --pairs 2000 --epochs 3
"""

import argparse

from lightning.pytorch import Trainer, seed_everything

from medvill_pl import MaskStrategy, PretrainingTask, SyntheticDataModule
from medvill_pl.models.medvill import BackboneConfig

BACKBONE: BackboneConfig = {
    "image_encoder": "resnet_small",
    "image_size": 128,
    "tokenizer": "synthetic",
    "max_tokens": 120,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 256,
    "dropout": 0.0,
}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    for strategy in MaskStrategy:
        seed_everything(0)
        data = SyntheticDataModule(
            options.pairs, num_val=200, image_size=128, batch_size=16, max_tokens=120, negatives="labels"
        )
        task = PretrainingTask(BACKBONE, mask_strategy=strategy.value, lr=2e-3, warmup_steps=100, mlm_probability=0.3)
        trainer = Trainer(
            max_epochs=options.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False
        )
        trainer.fit(task, datamodule=data)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        print(strategy.value, {name: round(value, 3) for name, value in sorted(figures.items())})


if __name__ == "__main__":
    main()
