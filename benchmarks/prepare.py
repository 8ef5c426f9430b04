"""Time the preparation of a corpus against bare decoding, resizing and encoding of the same files.

Bare is a loop over Pillow's own calls: open, decode to grey, resize with the aspect ratio kept, encode as PNG. The
preparation does that and all the rest: it checks, cuts margins, pads, sets aside what is broken, writes shards that
outlive a power cut, and can be resumed. Both take turns, in as many threads.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.synthetic.datamodule import SyntheticDataModule

AIM = 0.85
IMAGE_SIZE = 512


def make_images(folder: Path, num_images: int, height: int) -> list[Path]:
    """Write phantom images as JPEG files, as large and as noisy as radiographs are."""
    width = height * 5 // 6
    examples = SyntheticDataModule(num_train=num_images, num_val=4, num_test=4, image_size=256).examples("train")
    rng, paths = np.random.default_rng(0), []
    for number in range(num_images):
        image = Image.fromarray(examples.image(number)[0].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 3, (height, width))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=95)
    return paths


def bare(path: Path) -> int:
    """Decode, resize and encode one file, and do nothing else; returns the bytes of the PNG."""
    with Image.open(path) as file:
        image = file.convert("L")
    scale = IMAGE_SIZE / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0).save(buffer, format="PNG", compress_level=6)
    return buffer.tell()


def run_bare(paths: list[Path], workers: int) -> None:
    """The bare loop."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(bare, paths))


def run_preparation(paths: list[Path], workers: int) -> None:
    """A whole preparation, from nothing to a finished corpus."""
    rows = [Row(f"{number}", f"{number}", "train", str(path), "No finding.") for number, path in enumerate(paths)]
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "corpus", rows, CorpusInfo("phantoms", False, IMAGE_SIZE, []), workers)


def timed(run: Callable[[list[Path], int], None], paths: list[Path], workers: int) -> tuple[float, float]:
    """Seconds on the clock, and seconds of all cores together, which other work on the machine hardly touches."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run(paths, workers)
    return time.perf_counter() - start, time.process_time() - start_cpu


def measure(paths: list[Path], copies: int, rounds: int) -> dict[str, Any]:
    """Rates of both, with one worker and with one per core."""
    rows = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for workers in sorted({1, cores}):
        some = paths * copies * workers
        for run in (run_bare, run_preparation):
            run(paths, workers)  # fills the caches of the disk
        turns = [(*timed(run_bare, some, workers), *timed(run_preparation, some, workers)) for _ in range(rounds)]
        row: dict[str, Any] = {"workers": workers}
        row["bare"] = len(paths) * copies / statistics.median(turn[0] for turn in turns)
        row["prepared"] = len(paths) * copies / statistics.median(turn[2] for turn in turns)
        row["share"] = statistics.median(turn[0] / turn[2] for turn in turns)
        row["cpu_share"] = statistics.median(turn[1] / turn[3] for turn in turns)
        rows.append(row)
    num_bytes = sum(path.stat().st_size for path in paths) // len(paths)
    return {"images": len(paths) * copies, "bytes": num_bytes, "rows": rows}


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{figures['images']} images per worker, {figures['bytes']:,} bytes each\n")
    print("| workers | bare images/s per core | prepared images/s per core | share | share of CPU time | aim |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in figures["rows"]:
        rates = f"{row['bare']:.1f} | {row['prepared']:.1f} | {row['share']:.0%} | {row['cpu_share']:.0%}"
        print(f"| {row['workers']} | {rates} | {AIM:.0%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small images, to try the script in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the median is taken of")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder), *((4, 300) if options.small else (16, 3000)))
        figures = measure(images, *((1, 1) if options.small else (4, options.rounds)))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
