"""The k best ids of many queries, fed piece by piece: only what beats a query's k-th best so far costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A candidate is one int64 that sorts by score, then by falling id: the score's bits above, the inverted id below.
EMPTY = np.iinfo(np.int64).min
_IDS = np.int64(2**32 - 1)
# Room for candidates beyond k, so that sorting is rare where k is small.
_SLACK = 32

Keys = NDArray[np.int64]


def candidate_keys(scores: NDArray[np.float32], ids: NDArray[Any]) -> Keys:
    """One number for each candidate; the larger one has the higher score, or the same score and the smaller id.

    >>> first, second, third = candidate_keys(np.array([0.5, 0.5, -0.5], np.float32), np.array([3, 4, 0]))
    >>> bool(first > second > third)
    True
    """
    # + 0 makes -0.0 equal 0.0; negative floats order backwards, hence the flip of all bits but the sign
    bits = (scores + np.float32(0)).view(np.int32)
    ordered = bits >> 31
    ordered &= np.int32(2**31 - 1)
    ordered ^= bits
    keys = ordered.astype(np.int64)
    keys <<= 32
    keys |= _IDS - ids
    return keys


def split_keys(keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids (-1 where empty) and scores (-inf where empty) of candidate keys.

    >>> ids, scores = split_keys(candidate_keys(np.array([0.5, -2.0], np.float32), np.array([3, 4])))
    >>> ids.tolist(), scores.tolist()
    ([3, 4], [0.5, -2.0])
    """
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & np.int32(2**31 - 1))).view(np.float32)
    empty = keys == EMPTY
    ids = (_IDS - (keys & _IDS)).astype(np.int32)
    return np.where(empty, np.int32(-1), ids), np.where(empty, np.float32(-np.inf), scores)


def best_first(keys: Keys, k: int) -> Keys:
    """The k largest keys of each row, the largest first; rows are filled up with EMPTY."""
    ordered = np.sort(keys, axis=1)[:, ::-1][:, :k]
    missing = k - ordered.shape[1]
    return np.pad(ordered, ((0, 0), (0, missing)), constant_values=EMPTY) if missing else ordered


class RunningTopK:
    """Exact top-k of n queries. Memory: 8 (2 k + 32) bytes a query.

    `thresholds` (n,) float32: a candidate at or below its query's threshold cannot be among the k best, provided that
    ids come in ascending order. Candidates that beat it are appended; a full row is sorted and cut to its k best, which
    raises the threshold. In random order a query sees about 2 k log2(n_candidates / k) of them.

    >>> best = RunningTopK(1, k=2)
    >>> best.add(slice(0, 1), np.array([3]), np.array([5, 6, 7]), np.array([0.1, 0.9, 0.5], np.float32))
    >>> split_keys(best.take())[0].tolist()
    [[6, 7]]
    """

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.capacity = 2 * k + _SLACK
        self.thresholds = np.full(n, -np.inf, dtype=np.float32)
        self._keys = np.empty((n, self.capacity), dtype=np.int64)
        self._filled = np.zeros(n, dtype=np.int64)

    def seed(self, part: slice, scores: NDArray[np.float32]) -> None:
        """Start thresholds from some scores (queries, n) of each query's candidates: n >= k of them beat the k-th.

        The candidates must still be added: nothing of them is kept here.
        """
        if scores.shape[1] >= self.k:
            # NumPy sorts numbers of 32 bits faster than it finds one of them
            kth = np.sort(scores, axis=1)[:, -self.k]
            np.maximum(self.thresholds[part], _just_below(kth), out=self.thresholds[part])

    def add(self, part: slice, counts: NDArray[Any], ids: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Candidates of the queries in `part`, those of one query after those of the last; `counts` says how many."""
        thresholds, filled = self.thresholds[part], self._filled[part]
        slots, ends = self._keys.reshape(-1), np.arange(part.start + 1, part.start + 1 + len(filled)) * self.capacity
        keys = candidate_keys(scores, ids)
        while len(keys):
            full = np.flatnonzero(filled + counts > self.capacity)
            if len(full):
                self._cut(full + part.start)
                queries = np.repeat(np.arange(len(counts)), counts)
                keep = scores > thresholds[queries]
                keys, scores = keys[keep], scores[keep]
                counts = np.bincount(queries[keep], minlength=len(counts))
            before = np.cumsum(counts) - counts
            wanted = np.arange(len(keys)) + np.repeat(ends - self.capacity + filled - before, counts)
            room = np.minimum(counts, self.capacity - filled)
            filled += room
            if room.sum() == len(keys):
                slots[wanted] = keys
                return
            fits = wanted < np.repeat(ends, counts)
            slots[wanted[fits]] = keys[fits]
            keys, scores, counts = keys[~fits], scores[~fits], counts - room

    def take(self) -> Keys:
        """The k best keys of each query, best first, (n, k); the lists start anew, the thresholds stay."""
        lists = np.empty((len(self._keys), self.k), dtype=np.int64)
        for start in range(0, len(lists), 4096):
            rows = slice(start, start + 4096)
            lists[rows] = best_first(self._real(np.arange(len(lists))[rows]), self.k)
        self._filled[:] = 0
        self.forget_below(lists[:, -1])
        return lists

    def forget_below(self, kth: Keys) -> None:
        """Raise the thresholds to just below these k-th best keys (n,), known from elsewhere."""
        scores = _just_below(split_keys(kth)[1])
        np.maximum(self.thresholds, scores, out=self.thresholds)

    def _cut(self, rows: NDArray[Any]) -> None:
        """Sort these queries' candidates and keep the k best."""
        kept = best_first(self._real(rows), self.k)
        self._keys[rows, : self.k] = kept
        self._filled[rows] = np.minimum(self._filled[rows], self.k)
        self.thresholds[rows] = np.maximum(self.thresholds[rows], split_keys(kept[:, -1])[1])

    def _real(self, rows: NDArray[Any]) -> Keys:
        """The keys of these queries, EMPTY where there is none."""
        keys: Keys = self._keys[rows]
        keys[np.arange(self.capacity) >= self._filled[rows, None]] = EMPTY
        return keys


def merge_lists(parts: Sequence[Keys], k: int) -> Keys:
    """The k best keys of each query from several lists of each, best first."""
    return best_first(np.concatenate(parts, axis=1), k)


def _just_below(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """So that candidates which tie with these scores still count."""
    return np.nextafter(scores, np.float32(-np.inf))
