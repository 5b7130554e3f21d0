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

# Images and captions of a tile: wide, since a row's threshold starts anew in each block of images.
_TILE = 1024, 4096
# A score, its comparison, and the candidates that pass.
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
        tile = self.score(rows, columns).detach().float()
        # the sum tells at a fraction of the time, unless finite scores overflow in it
        if not math.isfinite(float(tile.sum())) and not tile.isfinite().all():
            raise ItmError(
                f"a score of images {rows.start} to {rows.stop - 1} and captions {columns.start} to {columns.stop - 1} "
                "is not finite; look for the embedding, or the weights, that produced it"
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
        everything = slice(0, rows.stop - rows.start)
        # with limits, the k-th best may be one that is to be dropped
        if columns.start == 0 and self.limits.images is None:
            best.seed(everything, group_maxima(tile, self.captions_per_image))
        image, caption, scores = survivors(tile, best.thresholds, 0)
        image, caption, scores = self._limited("captions", self.limits.images, rows, image, caption, scores)
        best.add(everything, image, caption + columns.start, scores)

    def _select_images(self, tile: Tensor, rows: slice, columns: slice, best: RunningTopK) -> None:
        if self.limits.captions is None and (best.thresholds[columns] == -np.inf).any():
            best.seed(columns, group_maxima(tile.t(), self.images_per_caption))
        image, caption, scores = survivors(tile, best.thresholds[columns], 1)
        # a radix sort, which keeps images in ascending order; tiles are narrower than 2**16
        order = np.argsort(caption.astype(np.uint16), kind="stable")
        image, caption, scores = image[order], caption[order], scores[order]
        caption, image, scores = self._limited("images", self.limits.captions, columns, caption, image, scores)
        best.add(columns, caption, image + rows.start, scores)

    def _limited(
        self,
        kind: str,
        limits: NDArray[np.float32] | None,
        part: slice,
        queries: NDArray[Any],
        others: NDArray[Any],
        scores: NDArray[np.float32],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
        """Without the candidates above the limit. None of them is missed: a threshold never rises above the limit."""
        if limits is None:
            return queries, others, scores
        keep = scores <= limits[part][queries]
        self.limits.dropped[f"dropped_{kind}"] += int(len(keep) - keep.sum())
        return queries[keep], others[keep], scores[keep]


def survivors(tile: Tensor, thresholds: NDArray[np.float32], axis: int) -> tuple[NDArray[Any], ...]:
    """Rows, columns and scores of the cells above the threshold of their row (axis 0) or column (1), row by row."""
    limits = np.expand_dims(thresholds, 1 - axis)
    if tile.device.type == "cpu":
        values = tile.numpy()
        cells = np.flatnonzero(values > limits)
        scores = values.reshape(-1)[cells]
    else:
        found = (tile > torch.from_numpy(limits).to(tile.device)).view(-1).nonzero().view(-1)
        cells, scores = found.cpu().numpy(), tile.view(-1)[found].cpu().numpy()
    rows, columns = np.divmod(cells, tile.shape[1])
    return rows, columns, scores


def group_maxima(scores: Tensor, k: int) -> NDArray[np.float32]:
    """The largest score of each of at least 2 k groups that a query's candidates (rows of `scores`) are dealt to.

    The k-th best of them is at most the k-th best score, and near to it, at a fraction of the sorting.

    >>> group_maxima(torch.tensor([[1.0, 5.0, 3.0, 4.0]]), k=1)
    array([[3., 5.]], dtype=float32)
    """
    size = max(1, scores.shape[1] // (2 * k))
    groups = scores.shape[1] // size
    parts = scores[:, : groups * size].reshape(len(scores), size, groups)
    maxima: NDArray[np.float32] = parts.amax(dim=1).contiguous().cpu().numpy()
    return maxima


def tile_shape(memory_budget_mb: float, bytes_per_pair: int = BYTES_PER_PAIR) -> tuple[int, int]:
    """Images and captions of a tile that stays within the budget; raises ItmError for a budget that is none.

    >>> tile_shape(1024), tile_shape(1)
    ((1024, 4096), (128, 512))
    """
    if not 0 < memory_budget_mb < math.inf:
        raise ItmError(f"memory_budget_mb is {memory_budget_mb}; give a number above 0")
    cells = min(_TILE[0] * _TILE[1], max(1, int(memory_budget_mb * 2**20 / bytes_per_pair)))
    rows = max(1, math.isqrt(cells * _TILE[0] // _TILE[1]))
    return rows, max(1, cells // rows)


def _leave_out(tile: Tensor, excluded: tuple[NDArray[np.int64], NDArray[np.int64]], columns: slice) -> None:
    """Set the excluded cells of the tile to -inf."""
    images, captions = excluded
    part = slice(*np.searchsorted(captions, [columns.start, columns.stop]))
    rows, cells = torch.from_numpy(images[part]), torch.from_numpy(captions[part] - columns.start)
    tile[rows.to(tile.device), cells.to(tile.device)] = -torch.inf
