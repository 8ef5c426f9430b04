"""Time the likelihood of given reports in one pass against a pass for each token.

The N-pass way runs, for each token and the closing SEP, the whole sequence of image, tokens before and MASK. Visual
tokens are kept, so the image encoder is not what is compared. Of a long report only some passes are timed, spread
evenly: the cost of a pass is smooth in its length, so their mean stands for that of all. Both ways run in
float32, report by report; ours runs in bfloat16 and in batches besides, as a user has it.
"""

import argparse
import statistics
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from common import FULL, SMALL, clock, device_name, draw_lengths, make_backbone, write_figures
from torch import Tensor

from medvill_pl import MaskStrategy, MedViLL
from medvill_pl.models.decoding.likelihood import log_likelihood
from medvill_pl.tokenizer import MAX_TOKENS

AIM = 20.0


def made_up_reports(number: int, backbone: MedViLL) -> list[Tensor]:
    """Random tokens and SEP, as long as reports are."""
    rng = np.random.default_rng(0)
    texts = [rng.choice(backbone.tokenizer.ordinary_ids, length) for length in draw_lengths(number, rng)]
    return [torch.from_numpy(np.append(ids, backbone.tokenizer.sep_id))[None] for ids in texts]


@torch.no_grad()
def one_token(backbone: MedViLL, visual_tokens: Tensor, ids: Tensor, position: int) -> float:
    """Log-probability of the token at one position, by a pass of its own."""
    before = torch.cat([ids[:, :position], ids.new_full((1, 1), backbone.tokenizer.mask_id)], dim=1)
    output = backbone(
        visual_tokens=visual_tokens,
        input_ids=before,
        text_mask=torch.ones_like(before, dtype=torch.bool),
        mask_strategy=MaskStrategy.SEQ2SEQ,
    )
    return backbone.mlm_logits(output.text[:, -1]).log_softmax(dim=1)[0, ids[0, position]].item()


def time_n_passes(backbone: MedViLL, visual_tokens: Tensor, ids: Tensor, most_passes: int) -> tuple[float, Tensor]:
    """Seconds of all passes, and what they gave: NaN at those that were left out, shape ``(1, T)``."""
    result = torch.full(ids.shape, torch.nan)
    length = ids.shape[1]
    positions = np.unique(np.linspace(0, length - 1, min(length, most_passes)).round().astype(int)).tolist()
    start = clock(visual_tokens.device.type)
    for position in positions:
        result[0, position] = one_token(backbone, visual_tokens, ids, position)
    return (clock(visual_tokens.device.type) - start) * length / len(positions), result


def time_one_pass(
    backbone: MedViLL, visual_tokens: Tensor, reports: list[Tensor], is_fast: bool = False
) -> tuple[float, Tensor]:
    """Seconds of one pass over some reports, and what it gave, shape ``(B, T)``."""
    longest = max(ids.shape[1] for ids in reports)
    ids = torch.cat([torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in reports])
    lengths = torch.tensor([[one.shape[1]] for one in reports], device=ids.device)
    device, is_real = visual_tokens.device.type, torch.arange(longest, device=ids.device) < lengths
    start = clock(device)
    with torch.autocast(device, torch.bfloat16) if is_fast else nullcontext():
        values = log_likelihood(backbone, visual_tokens=visual_tokens, input_ids=ids, text_mask=is_real)
    return clock(device) - start, values.cpu()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark."""
    device, size = options.device, (SMALL if options.small else FULL)["image_size"]
    backbone = make_backbone(options.small, device, False)
    reports = [ids.to(device) for ids in made_up_reports(options.reports, backbone)]
    noise = torch.rand(len(reports), 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = torch.cat([backbone.encode_image(image[None].to(device)) for image in noise])
    for is_fast in (False, True):  # kernels are chosen, weights are cast
        time_one_pass(backbone, tokens[:1], reports[:1], is_fast)
    one_token(backbone, tokens[:1], reports[0], 0)

    seconds: dict[str, list[float]] = {"N passes, float32": [], "one pass, float32": []}
    differences = []
    for row, ids in enumerate(reports):
        slow, expected = time_n_passes(backbone, tokens[row : row + 1], ids, options.passes)
        fast, values = time_one_pass(backbone, tokens[row : row + 1], [ids])
        differences.append((values - expected).abs().nan_to_num().max().item())
        for name, taken in zip(seconds, (slow, fast), strict=True):
            seconds[name].append(taken)
    assert max(differences) < 1e-4, f"the ways differ by {max(differences)} in a log-probability"
    together = statistics.median(time_one_pass(backbone, tokens, reports, is_fast=True)[0] for _ in range(3))
    totals = {name: sum(values) for name, values in seconds.items()}
    totals[f"one pass, bfloat16, batch {len(reports)}"] = together
    plain = totals["N passes, float32"]
    rows = [
        {"way": way, "ms_per_report": 1000 * value / len(reports), "speed_up": plain / value}
        for way, value in totals.items()
    ]
    return {
        "device": device_name(device),
        "tokens": [ids.shape[1] for ids in reports],
        "passes_timed": options.passes,
        "largest_difference": max(differences),
        "aim": AIM,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    tokens, timed = result["tokens"], result["passes_timed"]
    print(f"{result['device']}, {len(tokens)} reports of {min(tokens)} to {max(tokens)} tokens with SEP")
    print(f"Of the N passes, at most {timed} per report were timed, spread evenly, and scaled up to all.")
    print(f"largest difference of a log-probability: {result['largest_difference']:.1e}", end="\n\n")
    print("| way | ms per report | speed-up |")
    print("| --- | ---: | ---: |")
    for row in result["rows"]:
        print(f"| {row['way']} | {row['ms_per_report']:.3g} | {row['speed_up']:.1f} |")
    print(f"\nspeed-up in float32: {result['rows'][1]['speed_up']:.1f}, aim {result['aim']:.0f}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reports", type=int, default=8, help="reports, one at a time")
    parser.add_argument("--passes", type=int, help="timed passes per report (default: 8 on a CPU, all on a GPU)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script in seconds")
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    options = parser.parse_args()
    options.passes = options.passes or (8 if options.device == "cpu" else MAX_TOKENS + 1)
    return options


if __name__ == "__main__":
    options = parse()
    result = measure(options)
    write_figures(result, options.json)
    show(result)
