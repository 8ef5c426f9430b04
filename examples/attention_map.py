"""Where each word and CLS look on an image (the paper's Fig. 6): an array by layer and head, and a picture.

python examples/attention_map.py --backbone demo/backbone
python examples/attention_map.py --backbone demo/backbone --image radiograph.png --text "Small left pleural effusion."
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medvill_pl import MedViLL, SyntheticDataModule
from medvill_pl.data.images import fit_square, read_grey
from medvill_pl.evaluation.figures import attention_figure, attention_on_image, join_tokens


def attention_of_pair(
    backbone: MedViLL, image: NDArray[np.uint8], text: str, mask_strategy: str
) -> tuple[list[str], torch.Tensor]:
    """CLS and the words of a text, and where each looks, shape ``(1 + words, layers, heads, h, w)``."""
    ids = torch.tensor([[*backbone.tokenizer.encode([text])[0], backbone.tokenizer.sep_id]])
    weights = backbone.attention_weights(
        images=torch.from_numpy(image.copy())[None, None],
        input_ids=ids,
        text_mask=torch.ones_like(ids, dtype=torch.bool),
        mask_strategy=mask_strategy,  # the one it was trained with; fine-tuned for understanding: bidirectional
    )
    maps = attention_on_image(weights, backbone.num_visual)[0].permute(2, 0, 1, 3, 4)[:-1]  # without SEP
    return join_tokens(["CLS", *backbone.tokenizer.tokens(ids[0, :-1].tolist())], maps)


def main() -> None:
    """Write OUTPUT.npy and OUTPUT.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a folder that save_pretrained wrote, or a hub name")
    parser.add_argument("--image", type=Path, help="default: an image of the embedded corpus")
    parser.add_argument("--text", help="default: the image's own report")
    parser.add_argument("--mask-strategy", default="bidirectional", choices=["bidirectional", "seq2seq", "bar"])
    parser.add_argument("--layer", type=int, default=-1, help="for the picture (default: the last)")
    parser.add_argument("--head", type=int, help="for the picture (default: mean over the heads)")
    parser.add_argument("--output", type=Path, default=Path("attention"))
    options = parser.parse_args()
    if options.image and not options.text:
        parser.error("--image needs --text")
    backbone = MedViLL.from_pretrained(options.backbone)
    size = backbone.hparams["image_size"]
    examples = SyntheticDataModule(num_test=8, image_size=size).examples("test")
    image = fit_square(read_grey(options.image), size) if options.image else examples.image(7)[0].numpy()
    words, maps = attention_of_pair(backbone, image, options.text or examples.reports[7], options.mask_strategy)
    np.save(options.output.with_suffix(".npy"), maps.numpy())
    heads = maps[:, options.layer] if options.head is None else maps[:, options.layer, options.head : options.head + 1]
    rows = [row for row, word in enumerate(words) if word.isalnum()]  # no punctuation marks
    figure = attention_figure(image, [words[row] for row in rows], heads.mean(1)[rows], columns=6)
    figure.savefig(options.output.with_suffix(".png"), dpi=100)
    print(f"{options.output}.npy: {tuple(maps.shape)} = CLS and {len(words) - 1} words, layers, heads, rows, columns")
    top = max(rows, key=lambda row: float(heads[row].sum()))
    print(f"{options.output}.png: {words[top]!r} looks at the image most")


if __name__ == "__main__":
    main()
