"""Time training batches from a prepared corpus against bare decoding of the same bytes.

Bare is a loop that decodes the images of each batch, from bytes in its own memory, into one tensor. The loader does
that and all the rest: it plans the epoch, reads the corpus from disk, pads texts, pairs reports, and hands batches from
its workers to the main process. Both take turns, with as many processes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from medvill_pl.batch import Split
from medvill_pl.data.corpus import CorpusInfo, Row, write_corpus
from medvill_pl.data.pairs import PairsDataModule
from medvill_pl.synthetic.datamodule import SyntheticDataModule

AIM = 0.85


def make_corpus(folder: Path, num_pairs: int, image_size: int) -> Path:
    """Prepare phantom images and their reports."""
    examples = SyntheticDataModule(num_train=num_pairs, num_val=4, num_test=4, image_size=256).examples("train")
    rows = []
    for number, report in enumerate(examples.reports):
        path = folder / f"{number}.png"
        Image.fromarray(examples.image(number)[0].numpy()).resize((image_size, image_size)).save(path)
        labels = tuple(None if value != value else int(value) for value in examples.labels[number])
        split: Split = "train" if number < num_pairs - 4 else "val"
        rows.append(Row(str(number), str(number), split, str(path), report, labels=labels))
    write_corpus(folder / "corpus", rows, CorpusInfo("phantoms", False, image_size, []))
    return folder / "corpus"


_images: list[bytes] = []


def hold(images: list[bytes]) -> None:
    """Keep the images in a process of the bare loop, so that sending them is not timed."""
    torch.set_num_threads(1)
    _images.extend(images)


def decode_batches(share: slice, batch_size: int) -> int:
    """Decode a share of the images batch by batch and do nothing else; returns the number of batches."""
    images = _images[share]
    starts = range(0, len(images) - batch_size + 1, batch_size)
    for start in starts:
        batch = images[start : start + batch_size]
        buffers = [torch.frombuffer(bytearray(png), dtype=torch.uint8) for png in batch]
        torch.stack([decode_image(buffer, ImageReadMode.GRAY) for buffer in buffers])
    return len(starts)


def bare_rate(batch_size: int, workers: int, pool: ProcessPoolExecutor) -> float:
    """Batches per second of the bare loop, each process decoding its share."""
    start = time.perf_counter()
    shares = [slice(start, None, workers) for start in range(workers)]
    return sum(pool.map(decode_batches, shares, [batch_size] * workers)) / (time.perf_counter() - start)


def make_data(corpus: Path, image_size: int, batch_size: int, workers: int) -> PairsDataModule:
    """The data module over the corpus, set up for training."""
    data = PairsDataModule(
        str(corpus),
        tokenizer="synthetic",
        image_size=image_size,
        batch_size=batch_size,
        negatives="text",
        num_workers=workers,
    )
    data.setup("fit")
    return data


def loader_rate(data: PairsDataModule, epochs: int) -> float:
    """Batches per second of the training loader, once its workers run."""
    loader = data.train_dataloader()
    for _ in loader:  # starts the workers, which stay
        pass
    start, num_batches = time.perf_counter(), 0
    for _ in range(epochs):
        num_batches += sum(1 for _ in loader)
    return num_batches / (time.perf_counter() - start)


def measure(corpus: Path, image_size: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Rates of both, with one worker and with one per core."""
    images = [png for path in sorted(corpus.glob("train-*")) for png in pq.read_table(path)["image"].to_pylist()]
    rows = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for workers in sorted({1, cores}):
        data = make_data(corpus, image_size, batch_size, workers)
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=hold, initargs=(images,)) as pool:
            bare_rate(batch_size, workers, pool)  # starts the processes
            turns = [(bare_rate(batch_size, workers, pool), loader_rate(data, 2)) for _ in range(rounds)]
        bare, loaded = (statistics.median(column) for column in zip(*turns, strict=True))
        share = statistics.median(ours / plain for plain, ours in turns)
        rows.append({"workers": workers, "bare": bare, "loaded": loaded, "share": share})
    return rows


def show(rows: list[dict[str, Any]], batch_size: int, image_size: int) -> None:
    """Print the table."""
    print(f"batches of {batch_size} pairs, images of {image_size} pixels a side\n")
    print("| workers | bare batches/s | loaded batches/s | share | aim |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['workers']} | {row['bare']:.2f} | {row['loaded']:.2f} | {row['share']:.0%} | {AIM:.0%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small images, to try the script in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the median is taken of")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the figures there")
    options = parser.parse_args()
    num_pairs, image_size, batch_size = (20, 64, 4) if options.small else (516, 512, 16)
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), num_pairs, image_size)
        rows = measure(corpus, image_size, batch_size, 1 if options.small else options.rounds)
    show(rows, batch_size, image_size)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
