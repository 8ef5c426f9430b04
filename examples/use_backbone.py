"""Use the backbone alone: contextual embeddings of one image and its report, and what CLS attends to.

python examples/use_backbone.py                      # a new tiny backbone and a phantom radiograph
python examples/use_backbone.py demo/backbone        # the backbone that `medvill demo` wrote
"""

import sys

import torch

from medvill_pl import MedViLL, SyntheticDataModule


def main() -> None:
    """Embed a pair of the embedded corpus."""
    if len(sys.argv) > 1:
        backbone = MedViLL.from_pretrained(sys.argv[1])
    else:
        backbone = MedViLL(
            image_encoder="resnet_tiny",
            image_size=128,
            tokenizer="synthetic",
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=64,
        ).eval()
    examples = SyntheticDataModule(num_test=1, image_size=backbone.hparams["image_size"]).examples("test")
    report = examples.reports[0]
    ids = torch.tensor([[*backbone.tokenizer.encode([report])[0], backbone.tokenizer.sep_id]])
    inputs = {"images": examples.image(0)[None], "input_ids": ids, "text_mask": torch.ones_like(ids, dtype=torch.bool)}
    with torch.inference_mode():
        output = backbone(**inputs, mask_strategy="bidirectional")
        attention = backbone.attention_weights(**inputs)
    on_image = attention[0, -1, :, 0, 1 : 1 + backbone.num_visual].sum().item() / attention.shape[2]
    print(report)
    print(f"pooled {tuple(output.pooled.shape)}, visual {tuple(output.visual.shape)}, text {tuple(output.text.shape)}")
    print(f"CLS pays {on_image:.0%} of its attention in the last layer to the image")


if __name__ == "__main__":
    main()
