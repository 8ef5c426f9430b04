"""Processes that work side by side and never outlive the one that started them."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch


@contextmanager
def start_workers(max_workers: int) -> Iterator[Executor]:
    """Start processes, one per core but no more than can be used, which share the cores.

    Steps of a small transformer gain little from a second thread, and much from a second task beside them.

    The processes end with this block, also where it fails or its own process is killed, whatever they are doing.

    Args:
        max_workers: so many jobs there are at a time.
    """
    cores = os.cpu_count() or 1
    number = min(cores, max_workers)
    context = torch.multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    # Leaving the block closes `held` before the pool is left, which would wait for the running jobs.
    with ProcessPoolExecutor(number, context, _begin, (max(1, cores // number), watched)) as pool, held:
        yield pool


def _begin(num_threads: int, watched: Connection) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    be_quiet()


def _end_with(watched: Connection) -> None:
    """Wait for the other end to close, as it does when its process ends in any way, and end this process."""
    try:
        watched.recv()
    except EOFError:
        os._exit(0)


def be_quiet() -> None:
    """Silence what Lightning says of runs that are as they should be."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
