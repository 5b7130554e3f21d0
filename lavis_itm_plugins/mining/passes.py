"""One pass over score tiles that feeds the top-k of the tile's images and captions alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining.exclusions import Exclusions
from lavis_itm_plugins.mining.running import Keys, RunningTopK

# A query's threshold rises from tile to tile: the larger these are, the fewer candidates pass below the final one.
_LARGEST_TILE = 2**26
_CAPTIONS_PER_IMAGE = 4
# Blocks of images that a large set has at least, to be shown as progress, dealt to ranks, and kept when killed. With
# blocks of 2**10 images at least no tile is wider than 2**16, and columns are sorted as numbers of 16 bits.
_BLOCKS, _BLOCK = 32, 2**10
# Scores that are compared at once, whatever the size of the tile.
_STRIP = 2**21
# A score of a tile, and its share of what a strip makes of those that pass: at worst 80 for each of its own.
BYTES_PER_PAIR = 16

ScoreTile = Callable[[slice, slice], Tensor]


@dataclass
class Limits:
    """The highest scores that count, of images' lists (N,) and captions' lists (M,), and how many were above."""

    images: NDArray[np.float32] | None = None
    captions: NDArray[np.float32] | None = None
    dropped: dict[str, int] = field(default_factory=lambda: {"dropped_captions": 0, "dropped_images": 0})


@dataclass(frozen=True)
class TilePass:
    """How the score matrix (n_images, n_captions) is walked through; `score` gives a tile of it as a tensor."""

    score: ScoreTile
    exclusions: Exclusions
    n_captions: int
    captions_per_image: int
    images_per_caption: int
    tile: tuple[int, int]
    limits: Limits
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=2))

    def caption_lists(self) -> RunningTopK:
        """An empty running top-k of every caption."""
        return RunningTopK(self.n_captions, self.images_per_caption)

    def blocks(self, images: slice) -> Iterator[slice]:
        """Images that are worked through together."""
        for start in range(images.start, images.stop, self.tile[0]):
            yield slice(start, min(start + self.tile[0], images.stop))

    def run(self, rows: slice, by_caption: RunningTopK) -> Keys:
        """Score a block of images against all captions: their lists (len, k), and what the captions' lists gain."""
        by_image = RunningTopK(rows.stop - rows.start, self.captions_per_image)
        excluded = self.exclusions.pairs(rows)
        for start in range(0, self.n_captions, self.tile[1]):
            columns = slice(start, min(start + self.tile[1], self.n_captions))
            tile = self._scored(rows, columns)
            _leave_out(tile, excluded, columns)
            self._select(tile, rows, columns, by_image, by_caption)
        return by_image.take()

    def _scored(self, rows: slice, columns: slice) -> Tensor:
        tile = self.score(rows, columns).detach().float().contiguous()
        # the sum tells at a fraction of the time, unless finite scores overflow in it
        if not math.isfinite(float(tile.sum())) and not tile.isfinite().all():
            image, caption = (~tile.isfinite()).nonzero()[0].tolist()
            raise ItmError(
                f"the score of image {rows.start + image} and caption {columns.start + caption} is not finite; "
                "look for the embedding, or the weights, that produced it"
            )
        return tile

    def _select(
        self, tile: Tensor, rows: slice, columns: slice, by_image: RunningTopK, by_caption: RunningTopK
    ) -> None:
        """Both directions, each on a processor of its own: NumPy computes outside Python's lock."""
        directions = (
            partial(self._select_captions, tile, rows, columns, by_image),
            partial(self._select_images, tile, rows, columns, by_caption),
        )
        if torch.get_num_threads() == 1:
            for direction in directions:
                direction()
        else:
            for done in [self._threads.submit(direction) for direction in directions]:
                done.result()

    def _select_captions(self, tile: Tensor, rows: slice, columns: slice, best: RunningTopK) -> None:
        for part in _strips(*tile.shape):
            queries = slice(rows.start + part.start, rows.start + part.stop)
            if columns.start == 0:
                allowed = _allowed(tile[part], self.limits.images, queries, dim=1)
                best.seed(part, group_maxima(allowed, self.captions_per_image, dim=1))
            counts, captions, scores = survivors(tile, part, slice(None), best.thresholds[part, None])
            counts, captions, scores = self._limited("captions", self.limits.images, queries, counts, captions, scores)
            best.add(part, counts, captions + columns.start, scores)

    def _select_images(self, tile: Tensor, rows: slice, columns: slice, best: RunningTopK) -> None:
        for part in _strips(*tile.t().shape):
            queries = slice(columns.start + part.start, columns.start + part.stop)
            if (best.thresholds[queries] == -np.inf).any():
                allowed = _allowed(tile[:, part], self.limits.captions, queries, dim=0)
                best.seed(queries, group_maxima(allowed, self.images_per_caption, dim=0))
            by_image, captions, scores = survivors(tile, slice(None), part, best.thresholds[queries])
            # a radix sort, which keeps images in ascending order
            order = np.argsort(captions.astype(np.uint16), kind="stable")
            images = np.repeat(np.arange(rows.start, rows.stop), by_image)[order]
            counts = np.bincount(captions, minlength=part.stop - part.start)
            limited = self._limited("images", self.limits.captions, queries, counts, images, scores[order])
            best.add(queries, *limited)

    def _limited(
        self,
        kind: str,
        limits: NDArray[np.float32] | None,
        part: slice,
        counts: NDArray[Any],
        others: NDArray[Any],
        scores: NDArray[np.float32],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
        """Without the candidates above the limit. None of them is missed: a threshold never rises above the limit."""
        if limits is None:
            return counts, others, scores
        queries = np.repeat(np.arange(len(counts)), counts)
        keep = scores <= limits[part][queries]
        self.limits.dropped[f"dropped_{kind}"] += int(len(keep) - keep.sum())
        return np.bincount(queries[keep], minlength=len(counts)), others[keep], scores[keep]


def survivors(
    tile: Tensor, rows: slice, columns: slice, thresholds: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """The cells of a part of the tile above their threshold, which broadcasts.

    How many in each row, and their columns, counted from the part's first, and their scores, row by row.

    >>> tile, zero = torch.tensor([[0.1, 0.9, -0.5], [0.8, 0.7, 0.6]]), np.zeros(1, np.float32)
    >>> counts, columns, scores = survivors(tile, slice(None), slice(1, 3), zero)
    >>> counts.tolist(), columns.tolist(), scores.round(1).tolist() == np.float32([0.9, 0.7, 0.6]).tolist()
    ([1, 2], [0, 0, 1], True)
    """
    part = tile[rows, columns]
    height, width = part.shape
    above: Any
    if tile.device.type == "cpu":
        # NumPy compares twice as fast as torch where one side broadcasts
        cells = np.flatnonzero(part.numpy() > thresholds)
    else:
        above = part > torch.from_numpy(thresholds).to(tile.device)
        cells = above.view(-1).nonzero().view(-1).cpu().numpy()
    counts = np.diff(np.searchsorted(cells, np.arange(height + 1) * width))
    found = cells - np.repeat(np.arange(height) * width, counts)
    if tile.device.type == "cpu":
        first = (rows.start or 0) * tile.shape[1] + (columns.start or 0)
        scores = tile.numpy().reshape(-1)[found + np.repeat(np.arange(height) * tile.shape[1] + first, counts)]
    else:
        scores = part[above].cpu().numpy()
    return counts, found, scores


def _allowed(part: Tensor, limits: NDArray[np.float32] | None, queries: slice, dim: int) -> Tensor:
    """The scores, -inf above their query's limit; the queries' candidates lie along `dim`."""
    if limits is None:
        return part
    return part.masked_fill(part > torch.from_numpy(limits[queries]).to(part.device).unsqueeze(dim), -torch.inf)


def group_maxima(tile: Tensor, k: int, dim: int) -> NDArray[np.float32]:
    """The largest score (queries, groups) of each of at least 4 k groups that the candidates (`dim`) are dealt to.

    The k-th best of them is at most the k-th best score, and near to it, at a fraction of the sorting.

    >>> group_maxima(torch.tensor([[1.0, 2.0, 5.0, 0.0, 3.0, 4.0, 9.0, 7.0]]), k=1, dim=1)
    array([[3., 4., 9., 7.]], dtype=float32)
    """
    candidates = tile.shape[dim]
    size = max(1, candidates // (4 * k))
    groups = candidates // size
    maxima = tile.narrow(dim, 0, groups * size).unflatten(dim, (size, groups)).amax(dim)
    queries_first: NDArray[np.float32] = maxima.movedim(dim, 1).contiguous().cpu().numpy()
    return queries_first


def tile_shape(memory_budget_mb: float, n_images: int, bytes_per_pair: int = BYTES_PER_PAIR) -> tuple[int, int]:
    """Images and captions of a tile that stays within the budget; raises ItmError for a budget that is none.

    >>> tile_shape(1024, n_images=29_000), tile_shape(1, n_images=29_000), tile_shape(1024, n_images=113_287)
    ((1024, 65536), (128, 512), (3541, 18951))
    """
    if not 0 < memory_budget_mb < math.inf:
        raise ItmError(f"memory_budget_mb is {memory_budget_mb}; give a number above 0")
    cells = min(_LARGEST_TILE, max(1, int(memory_budget_mb * 2**20 / bytes_per_pair)))
    block = max(_BLOCK, math.ceil(n_images / _BLOCKS))
    rows = max(1, min(math.isqrt(cells // _CAPTIONS_PER_IMAGE), block))
    return rows, max(1, cells // rows)


def _strips(n_queries: int, n_candidates: int) -> Iterator[slice]:
    """Queries of a tile that are compared together."""
    height = max(1, _STRIP // n_candidates)
    for start in range(0, n_queries, height):
        yield slice(start, min(start + height, n_queries))


def _leave_out(tile: Tensor, excluded: tuple[NDArray[np.int64], NDArray[np.int64]], columns: slice) -> None:
    """Set the excluded cells of the tile to -inf."""
    images, captions = excluded
    part = slice(*np.searchsorted(captions, [columns.start, columns.stop]))
    rows, cells = torch.from_numpy(images[part]), torch.from_numpy(captions[part] - columns.start)
    tile[rows.to(tile.device), cells.to(tile.device)] = -torch.inf
