"""Draw the pictures of the documents: `python docs/figures.py`."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from medvill_pl import MaskStrategy, SyntheticDataModule, attention_mask

FOLDER = Path(__file__).parent
STRATEGIES = ("bidirectional", "seq2seq", "bar", "non_crossing")


def draw_masks() -> None:
    """The four masks over three visual tokens and four text tokens, as the paper's Fig. 4 and 8."""
    figure, axes = plt.subplots(1, len(STRATEGIES), figsize=(13, 3.9))
    for axis, strategy in zip(axes, STRATEGIES, strict=True):
        names = ["CLS", "v1", "v2", "v3", "SEP", "w1", "w2", "w3", "w4", "SEP"]
        if strategy == MaskStrategy.NON_CROSSING:
            names.insert(5, "CLS")
        text_mask = torch.ones(1, len(names) - 5, dtype=torch.bool)
        mask = attention_mask(strategy, num_visual=3, text_mask=text_mask)[0, 0]
        axis.imshow(mask, cmap=ListedColormap(["#eceff3", "#2f6db3"]), vmin=0, vmax=1)
        axis.set_title(strategy)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xticks([x - 0.5 for x in range(1, len(names))], minor=True)
        axis.set_yticks([x - 0.5 for x in range(1, len(names))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="both", length=0)
        axis.spines[:].set_visible(False)
    figure.text(0.5, 0.01, "blue: the row (query) attends to the column (key)", ha="center", color="#5a6675")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(FOLDER / "masks.png", dpi=110)


def draw_radiographs() -> None:
    """Eight phantom radiographs of the embedded corpus."""
    examples = SyntheticDataModule(num_test=8, image_size=256).examples("test")
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.1))
    for index, axis in enumerate(axes.flat):
        axis.imshow(examples.image(index)[0], cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(FOLDER / "radiographs.png", dpi=80)


if __name__ == "__main__":
    mpl.use("Agg")
    draw_masks()
    draw_radiographs()
