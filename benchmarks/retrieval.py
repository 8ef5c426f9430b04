"""Time retrieval among 100 candidates, both ways, against encoding every pair from pixels.

All queries of a test split search among 100 candidates in both directions, as ``RetrievalTask`` does it: the image
encoder runs once per image, then the transformer once per pair, in batches of like length. It is compared with running
both for every pair, at the same precision and padding, and in float32 with every report padded to the longest text that
the model takes. Some of the batches are timed, spread evenly over the lengths; the three ways take turns at them.
"""

import argparse
from typing import Any

import numpy as np
import torch
from common import FULL, SMALL, clock, device_name, draw_lengths, make_backbone, make_tokenizer, write_figures
from numpy.typing import NDArray
from torch import Tensor

from medvill_pl import RetrievalTask
from medvill_pl.evaluation.retrieval import draw_candidate_sets
from medvill_pl.tasks.gallery import pad_texts
from medvill_pl.tokenizer import MAX_TOKENS

NUM_PAIRS, NUM_CANDIDATES = 354, 100  # of the paper's Open-I test split; per query
AIMS = {"cpu": 4.0, "cuda": 10.0}  # against float32 padded to the longest
SHARE_AIM = 0.9  # of the bound against the same precision and padding
Pairs = NDArray[np.int64]


class Bench:
    """Images of noise and made-up reports, with the task that matches them.

    Args:
        options: the command line.
        is_fast: bfloat16 and a channels-last image encoder, or float32.
    """

    def __init__(self, options: argparse.Namespace, is_fast: bool) -> None:
        self.device, self.is_fast = options.device, is_fast
        torch.manual_seed(0)
        self.task = RetrievalTask.from_backbone(make_backbone(options.small, options.device, is_fast))
        self.task.to(options.device).eval()
        torch.nn.init.normal_(self.task.head.weight)
        size, generator = (SMALL if options.small else FULL)["image_size"], torch.Generator().manual_seed(0)
        noise = torch.rand(NUM_PAIRS, 1, 16, 16, generator=generator).mul(255).byte()
        self.images = noise.repeat_interleave(size // 16, 2).repeat_interleave(size // 16, 3).to(options.device)
        self.texts = make_texts(options.small)

    def autocast(self) -> torch.autocast:
        """The precision of this side."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.is_fast)

    @torch.no_grad()
    def encode(self, images: Pairs, batch_size: int) -> tuple[float, Tensor]:
        """Run the image encoder: seconds, and visual tokens, shape ``(B, K, d)``."""
        start = clock(self.device)
        with self.autocast():
            parts = [self.task.backbone.encode_image(part) for part in self.images[images].split(batch_size)]
        return clock(self.device) - start, torch.cat(parts)

    @torch.no_grad()
    def from_pixels(self, pairs: Pairs, pad_to: int | None = None) -> tuple[float, Tensor]:
        """Run image encoder and transformer for every pair: seconds, and logits, shape ``(P,)``."""
        start = clock(self.device)
        input_ids, mask = pad_texts([self.texts[report] for report in pairs[:, 1]], self.task.tokenizer.pad_id)
        missing = (0, max(0, (pad_to or 0) - input_ids.shape[1]))
        input_ids = torch.nn.functional.pad(input_ids, missing, value=self.task.backbone.tokenizer.pad_id)
        with self.autocast():
            tokens = self.task.backbone.encode_image(self.images[pairs[:, 0]])
            logits = self.task(tokens, input_ids, torch.nn.functional.pad(mask, missing)).float().cpu()
        return clock(self.device) - start, logits

    @torch.no_grad()
    def transformer_alone(self, tokens: Tensor, pairs: Pairs) -> float:
        """Seconds of the transformer, with all that it takes at hand."""
        input_ids, mask = pad_texts([self.texts[report] for report in pairs[:, 1]], self.task.tokenizer.pad_id)
        start = clock(self.device)
        with self.autocast():
            self.task(tokens, input_ids, mask)
        return clock(self.device) - start


def make_texts(small: bool) -> list[list[int]]:
    """Encoded reports of made-up words, each with its SEP_L."""
    rng, tokenizer = np.random.default_rng(0), make_tokenizer(small)
    lengths = draw_lengths(NUM_PAIRS, rng)
    return [[*rng.choice(tokenizer.ordinary_ids, length).tolist(), tokenizer.sep_id] for length in lengths]


def draw_pairs(texts: list[list[int]], num_batches: int, batch_size: int) -> tuple[int, list[Pairs]]:
    """How many pairs the searches of both directions need, and some batches of like length, spread over all lengths."""
    is_needed = np.zeros((NUM_PAIRS, NUM_PAIRS), dtype=bool)
    queries = np.arange(NUM_PAIRS)[:, None]
    is_needed[queries, draw_candidate_sets(NUM_PAIRS, NUM_CANDIDATES, 0)] = True
    is_needed[draw_candidate_sets(NUM_PAIRS, NUM_CANDIDATES, 1), queries] = True
    pairs = np.random.default_rng(0).permutation(np.argwhere(is_needed))
    lengths = np.array([len(texts[report]) for report in pairs[:, 1]])
    shortest_first = pairs[np.argsort(lengths, kind="stable")]
    middles = (np.arange(num_batches) + 0.5) / num_batches * len(pairs)
    return len(pairs), [shortest_first[int(middle) - batch_size // 2 :][:batch_size] for middle in middles]


def check(plain: Bench, pairs: Pairs) -> None:
    """In float32, our way must give the plain way's logits."""
    images = np.unique(pairs[:, 0])
    gallery = plain.task.make_gallery(plain.encode(images, len(images))[1], plain.texts)
    positions = np.stack([np.searchsorted(images, pairs[:, 0]), pairs[:, 1]], axis=1)
    ours = torch.from_numpy(plain.task.score_pairs(gallery, positions))
    _, theirs = plain.from_pixels(pairs, MAX_TOKENS + 1)
    assert theirs.std() > 1e-3, "the logits do not depend on the pairs"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * float(theirs.std()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark."""
    plain, fast = Bench(options, is_fast=False), Bench(options, is_fast=True)
    num_needed, batches = draw_pairs(plain.texts, options.batches, options.batch)
    check(plain, batches[len(batches) // 2][:4])
    warm_up = batches if options.device == "cuda" else [batches[0][:2]]
    for part in warm_up:
        plain.from_pixels(part, MAX_TOKENS + 1)
        fast.from_pixels(part)

    images = np.unique(np.concatenate(batches)[:, 0])
    encoder_seconds, tokens = fast.encode(images, options.batch)
    gallery = fast.task.make_gallery(tokens, fast.texts)
    seconds = dict.fromkeys(("plain", "pixels", "transformer", "pairs"), 0.0)
    for pairs in batches:
        positions = np.stack([np.searchsorted(images, pairs[:, 0]), pairs[:, 1]], axis=1)
        seconds["plain"] += plain.from_pixels(pairs, MAX_TOKENS + 1)[0]
        seconds["pixels"] += fast.from_pixels(pairs)[0]
        seconds["transformer"] += fast.transformer_alone(gallery.visual_tokens[positions[:, 0]], pairs)
        start = clock(options.device)
        with fast.autocast():
            fast.task.score_pairs(gallery, positions)
        seconds["pairs"] += clock(options.device) - start

    timed = sum(map(len, batches))
    per_pair = {name: value / timed for name, value in seconds.items()}
    per_image = encoder_seconds / len(images)
    per_pair["ours"] = per_pair["pairs"] + per_image * NUM_PAIRS / num_needed
    return {
        "device": device_name(options.device),
        "gallery": NUM_PAIRS,
        "pairs": num_needed,
        "timed_pairs": timed,
        "batch": options.batch,
        "seconds_per_pair": per_pair,
        "image_encoder_seconds_per_image": per_image,
        "speed_up": {name: per_pair[name] / per_pair["ours"] for name in ("plain", "pixels")},
        "bound": (per_image + per_pair["transformer"]) / per_pair["transformer"],
        "aim": AIMS[options.device],
    }


WAYS = {
    "plain": "every pair from pixels, float32, padded to 253 tokens and SEP",
    "pixels": "every pair from pixels, bfloat16, like lengths together",
    "ours": "image encoder once per image, bfloat16, like lengths together",
}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{result['device']}, batches of {result['batch']}")
    print(f"{result['gallery']} queries both ways need {result['pairs']:,} pairs; {result['timed_pairs']:,} were timed")
    per_pair, speed_up = result["seconds_per_pair"], result["speed_up"]
    image_ms, pair_ms = 1000 * result["image_encoder_seconds_per_image"], 1000 * per_pair["transformer"]
    print(f"image encoder {image_ms:.3g} ms per image, transformer {pair_ms:.3g} ms per pair", end="\n\n")
    print("| way | ms/pair | pairs/s | ours is faster by |")
    print("| --- | ---: | ---: | ---: |")
    for name, way in WAYS.items():
        figures = f"{1000 * per_pair[name]:.3g} | {1 / per_pair[name]:.3g} | {speed_up.get(name, 1):.2f}"
        print(f"| {way} | {figures} |")
    share = speed_up["pixels"] / result["bound"]
    print(f"\nagainst the same precision and padding {speed_up['pixels']:.2f}, bound {result['bound']:.2f}: ", end="")
    print(f"{share:.0%} of it, aim {SHARE_AIM:.0%}")
    print(f"against float32 and full padding {speed_up['plain']:.2f}, aim {result['aim']:.0f}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs per batch (default: 16 on a CPU, 128 on a GPU)")
    parser.add_argument("--batches", type=int, help="batches to time (default: 6 on a CPU, 32 on a GPU)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script in seconds")
    parser.add_argument("--json", metavar="OUT", help="write the figures there")
    options = parser.parse_args()
    options.batch = options.batch or (16 if options.device == "cpu" else 128)
    options.batches = options.batches or (6 if options.device == "cpu" else 32)
    return options


if __name__ == "__main__":
    options = parse()
    result = measure(options)
    write_figures(result, options.json)
    show(result)
