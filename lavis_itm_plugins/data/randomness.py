"""Random draws that belong to an item, not to a worker: the same with any number of workers or ranks, and on resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's generators start from `key` (whole numbers from 0); after it, as before.

    >>> with seeded(1, 2):
    ...     first = random.random()
    >>> with seeded(1, 2):
    ...     first == random.random()
    True
    """
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # torch.manual_seed would also reset the GPU generators, which nothing here puts back
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def keyed_uniform(seed: int, epoch: int, rows: np.ndarray, draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (len(rows), draws) float64, a function of (seed, epoch, row) alone.

    The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), used as a counter-based hash.

    >>> a = keyed_uniform(0, 3, np.array([5, 9]), 4)
    >>> bool((a[1] == keyed_uniform(0, 3, np.array([9]), 4)[0]).all())
    True
    """
    key = _mix(_mix(np.uint64(seed % 2**64)) + np.uint64(epoch))
    with np.errstate(over="ignore"):
        row_keys = _mix(key + rows.astype(np.uint64))[:, None]
        bits = _mix(row_keys + np.arange(1, draws + 1, dtype=np.uint64)[None, :] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
