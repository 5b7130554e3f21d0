"""A batch of region features, 128 x 36 x 2048 float32: ours from the memory map against the field's per-item way.

Reference: SCAN and the code after it make a `torch.Tensor` of each row and stack them in the collate function. Both
read one file by memory map with its pages in memory, in one process, and give the same batch. The ratio is of CPU
seconds on one thread: other jobs on the machine hardly change it.
Run ``python -m benchmarks.loading [--quick] [--threads 2] [--require 4]``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.data.features import FeatureFile

BATCH, REGIONS, DIM = 128, 36, 2048


def write_features(path: Path, images: int, dtype: str) -> None:
    """A file of `images` rows, each different, with its pages in memory."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(images, REGIONS, DIM))
    row = np.random.default_rng(0).standard_normal((REGIONS, DIM), dtype=np.float32)
    for number in range(images):
        array[number] = np.roll(row, number)
    array.flush()


def per_item(array: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.stack([torch.Tensor(array[row]) for row in rows], 0)


def seconds(fetch: Callable[[np.ndarray], Tensor], batches: list[np.ndarray]) -> tuple[float, float]:
    """The fastest batch, in CPU seconds and by the clock."""
    best = float("inf"), float("inf")
    for rows in batches:
        start = time.process_time(), time.perf_counter()
        batch = fetch(rows)
        best = min(best[0], time.process_time() - start[0]), min(best[1], time.perf_counter() - start[1])
        del batch
    return best


def compare(folder: Path, images: int, dtype: str, threads: int) -> float:
    """Print one line; the ratio is given back."""
    path = folder / f"{dtype}.npy"
    write_features(path, images, dtype)
    features, array = FeatureFile(path), np.load(path, mmap_mode="r")
    batches = [np.random.default_rng(seed).choice(images, BATCH, replace=False) for seed in range(12)]
    assert torch.equal(features.fetch(batches[0]), per_item(array, batches[0]))
    theirs, theirs_clock = seconds(lambda rows: per_item(array, rows), batches)
    ours, ours_clock = seconds(features.fetch, batches)
    print(
        f"loading {BATCH} x {REGIONS} x {DIM} {dtype}, {threads} threads: per item {theirs:.4f} CPU s "
        f"({theirs_clock:.4f} s), ours {ours:.4f} CPU s ({ours_clock:.4f} s), ratio {theirs / ours:.1f}"
    )
    return theirs / ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a file of 200 images instead of 2,000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if the float32 ratio is smaller")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = 200 if args.quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        ratio = compare(Path(folder), images, "float32", args.threads)
        compare(Path(folder), images, "float16", args.threads)
    return int(ratio < args.require)


if __name__ == "__main__":
    sys.exit(main())
