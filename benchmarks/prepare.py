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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.synthetic.datamodule import SyntheticDataModule

AIM = 0.85
IMAGE_SIZE = 512


def make_films(folder: Path, num_films: int, height: int) -> list[Path]:
    """Write phantom films as JPEG files, as large and as noisy as radiographs are."""
    width = height * 5 // 6
    examples = SyntheticDataModule(num_train=num_films, num_val=4, num_test=4, image_size=256).examples("train")
    rng, paths = np.random.default_rng(0), []
    for number in range(num_films):
        film = Image.fromarray(examples.image(number)[0].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 3, (height, width))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray((np.asarray(film) + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=95)
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


def time_bare(paths: list[Path], workers: int) -> float:
    """Seconds of the bare loop."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(bare, paths))
    return time.perf_counter() - start


def time_preparation(paths: list[Path], workers: int) -> float:
    """Seconds of a whole preparation, from nothing to a finished corpus."""
    rows = [Row(path.name, path.name, "train", str(path), "No finding.") for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_corpus(Path(folder) / "corpus", rows, CorpusInfo("films", False, IMAGE_SIZE, []), workers)
        return time.perf_counter() - start


def measure(paths: list[Path], copies: int, rounds: int) -> dict[str, Any]:
    """Rates of both, with one worker and with one a core."""
    rows = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for workers in sorted({1, cores}):
        some = paths * copies * workers
        time_bare(paths, workers), time_preparation(paths, workers)  # fills the caches of the disk
        turns = [(time_bare(some, workers), time_preparation(some, workers)) for _ in range(rounds)]
        seconds, own = (statistics.median(column) for column in zip(*turns, strict=True))
        per_core = len(some) / workers
        share = statistics.median(plain / ours for plain, ours in turns)
        rows.append({"workers": workers, "bare": per_core / seconds, "prepared": per_core / own, "share": share})
    return {
        "images": len(paths) * copies,
        "bytes": sum(path.stat().st_size for path in paths) // len(paths),
        "rows": rows,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{figures['images']} images a worker, {figures['bytes']:,} bytes each\n")
    print("| workers | bare images/s a core | prepared images/s a core | share | aim |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in figures["rows"]:
        print(f"| {row['workers']} | {row['bare']:.1f} | {row['prepared']:.1f} | {row['share']:.0%} | {AIM:.0%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small films, to try the script in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the median is taken of")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = make_films(Path(folder), *((4, 300) if options.small else (16, 3000)))
        figures = measure(films, *((1, 1) if options.small else (4, options.rounds)))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
