"""Time report generation, from pixels to tokens, against decoding that starts anew at every token.

The plain way runs image encoder and sequence again for each token, in float32. Its cost at a token is a polynomial of
degree two in the tokens before it, so timing the first, the middle and the last token gives that of all by Simpson's
rule. Ours is run whole, in float32 and as a user runs it: bfloat16 and, on a CPU, the channels-last image encoder. Both
ways must write the same in float32 at the tokens that are timed.
"""

import argparse
import statistics
from contextlib import nullcontext
from typing import Any

import torch
from common import FULL, SMALL, clock, device_name, make_backbone, write_figures
from torch import Tensor

from medvill_pl import MaskStrategy, MedViLL
from medvill_pl.models.decoding.config import DecodingConfig
from medvill_pl.models.decoding.generate import generate

AIMS = {"cpu": 40.0, "cuda": 50.0}  # at batch 32


def make_images(number: int, options: argparse.Namespace) -> Tensor:
    """Images of noise, each with a brightness of its own, uint8."""
    size = (SMALL if options.small else FULL)["image_size"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(number, 1, size, size, generator=generator) * torch.rand(number, 1, 1, 1, generator=generator)
    return (255 * noise).byte().to(options.device)


@torch.no_grad()
def next_tokens(backbone: MedViLL, images: Tensor, before: Tensor) -> Tensor:
    """The plain way: from pixels and the tokens before, shape ``(B, t)``, to the most probable next one, ``(B,)``."""
    ids = torch.cat([before, before.new_full((len(before), 1), backbone.tokenizer.mask_id)], dim=1)
    is_real = torch.ones_like(ids, dtype=torch.bool)
    output = backbone(images=images, input_ids=ids, text_mask=is_real, mask_strategy=MaskStrategy.SEQ2SEQ)
    logits = backbone.mlm_logits(output.text[:, -1])
    ordinary = torch.from_numpy(backbone.tokenizer.ordinary_ids).to(logits.device)
    return ordinary[logits[:, ordinary].argmax(dim=1)]


def write(images: Tensor, options: argparse.Namespace, is_fast: bool) -> tuple[float, Tensor]:
    """Our way: seconds for all reports, and their tokens, shape ``(B, num_tokens)``."""
    backbone = make_backbone(options.small, options.device, is_fast and options.device == "cpu")
    config = DecodingConfig(min_new_tokens=options.tokens, max_new_tokens=options.tokens)
    start = clock(options.device)
    with torch.autocast(options.device, torch.bfloat16) if is_fast else nullcontext():
        reports = generate(backbone, config, images=images)
    seconds = clock(options.device) - start
    return seconds, torch.tensor([report.ids for report in reports], device=images.device)


def time_plain(images: Tensor, written: Tensor, options: argparse.Namespace) -> float:
    """Seconds of the plain way for all tokens, from three of them, which must be those that were written."""
    backbone, num_tokens = make_backbone(options.small, options.device, False), options.tokens
    seconds = []
    for position in (0, num_tokens // 2, num_tokens - 1):
        start = clock(options.device)
        predicted = next_tokens(backbone, images, written[:, :position])
        seconds.append(clock(options.device) - start)
        assert torch.equal(predicted, written[:, position]), f"the tokens at position {position} differ"
    first, middle, last = seconds
    return num_tokens * (first + 4 * middle + last) / 6


def compare(batch_size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways at one batch size."""
    images = make_images(batch_size, options)
    exact, written = write(images, options, is_fast=False)
    times = {
        "plain, float32": time_plain(images, written, options),
        "cached, float32": exact,
        "cached, bfloat16": statistics.median(write(images, options, is_fast=True)[0] for _ in range(options.rounds)),
    }
    plain = times["plain, float32"]
    return [
        {
            "batch": batch_size,
            "way": way,
            "seconds": seconds,
            "reports_per_second": batch_size / seconds,
            "speed_up": plain / seconds,
        }
        for way, seconds in times.items()
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark."""
    for is_fast in (False, True):  # weights are drawn and kernels chosen
        write(make_images(1, options), options, is_fast)
    rows = [row for batch_size in options.batch for row in compare(batch_size, options)]
    aim = AIMS[options.device]
    return {"device": device_name(options.device), "tokens": options.tokens, "aim_at_32": aim, "rows": rows}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['device']}, {result['tokens']} tokens per report")
    print("The plain way was timed at three tokens and integrated; there, both ways wrote the same.", end="\n\n")
    print("| batch | way | seconds | reports/s | speed-up |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for row in result["rows"]:
        figures = f"{row['seconds']:.3g} | {row['reports_per_second']:.3g} | {row['speed_up']:.1f}"
        print(f"| {row['batch']} | {row['way']} | {figures} |")
    for row in result["rows"]:
        if row["batch"] == 32 and row["way"] == "cached, bfloat16":
            print(f"\nspeed-up at batch 32: {row['speed_up']:.1f}, aim {result['aim_at_32']:.0f}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="reports at a time (default: 1 and 32)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each report")
    parser.add_argument("--rounds", type=int, default=3, help="runs in bfloat16, of which the median counts")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script in seconds")
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    result = measure(options)
    write_figures(result, options.json)
    show(result)
