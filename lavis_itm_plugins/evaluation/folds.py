"""COCO's 1K protocol: the mean of the metrics over five blocks of 1,000 of the 5,000 test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import ImageIds, Scores, image_ids, score_array
from lavis_itm_plugins.evaluation.recall import RecallCounter, count_matrix, tile_array
from lavis_itm_plugins.evaluation.tiles import Tile


@dataclass(frozen=True)
class _Fold:
    images: slice
    captions: NDArray[np.int64]
    counter: RecallCounter

    def part(self, rows: slice, columns: slice) -> Tile:
        """The fold's own images and captions inside a tile, counted within the fold."""
        first, last = self.images.start, self.images.stop
        start = max(rows.start, first)
        inside = np.searchsorted(self.captions, [columns.start, columns.stop])
        own_rows = slice(start - first, max(start, min(rows.stop, last)) - first)
        return own_rows, slice(int(inside[0]), int(inside[1]))


class FoldCounter:
    """One ``RecallCounter`` per block of consecutive images, fed with the tiles of the whole: no second product.

    >>> counter = FoldCounter([0, 1, 2, 3], n_images=4, folds=2)
    >>> tile = slice(0, 4), slice(0, 4)
    >>> counter.find_positives(*tile, np.eye(4))
    >>> counter.update(*tile, np.eye(4))
    >>> counter.metrics()["rsum"]
    600.0
    """

    def __init__(self, caption_image: ImageIds, n_images: int, folds: int = 5) -> None:
        ids = image_ids(caption_image, n_images)
        if not 1 <= folds <= n_images:
            raise ItmError(f"folds is {folds}; give 1 to {n_images}, the number of images")
        self._folds = []
        edges = [n_images * fold // folds for fold in range(folds + 1)]
        for images in map(slice, edges, edges[1:]):
            captions = np.flatnonzero((ids >= images.start) & (ids < images.stop))
            counter = RecallCounter(ids[captions] - images.start, images.stop - images.start)
            self._folds.append(_Fold(images, captions, counter))

    def holds_positives(self, rows: slice, columns: slice) -> bool:
        """Whether an image of the tile is the image of one of its captions."""
        return any(fold.counter.holds_positives(*fold.part(rows, columns)) for fold in self._folds)

    def find_positives(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Keep the scores of the tile's positive pairs."""
        for fold, part, tile in self._parts(rows, columns, scores):
            fold.counter.find_positives(*part, tile)

    def update(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Count the tile's cells whose image and caption are in the same fold."""
        for fold, part, tile in self._parts(rows, columns, scores):
            fold.counter.update(*part, tile)

    def metrics(self) -> dict[str, float]:
        """Mean over the folds of every metric of ``retrieval_metrics``."""
        each = [fold.counter.metrics() for fold in self._folds]
        return {key: float(np.mean([metrics[key] for metrics in each])) for key in each[0]}

    def _parts(self, rows: slice, columns: slice, scores: Scores) -> Iterator[tuple[_Fold, Tile, NDArray[Any]]]:
        tile = tile_array(rows, columns, scores)
        for fold in self._folds:
            part = fold.part(rows, columns)
            shift = fold.images.start - rows.start
            captions = fold.captions[part[1]] - columns.start
            if part[0].stop > part[0].start and len(captions):
                own_rows = tile[part[0].start + shift : part[0].stop + shift]
                yield fold, part, own_rows[:, _as_slice(captions)]


def _as_slice(positions: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    # Ascending positions without a gap are taken as a view; others are copied.
    together = positions[-1] - positions[0] + 1 == len(positions)
    return slice(int(positions[0]), int(positions[-1]) + 1) if together else positions


def coco_1k_folds(scores: Scores, caption_image: ImageIds, *, folds: int = 5) -> dict[str, float]:
    """Mean of ``retrieval_metrics`` over consecutive blocks of images, each with its own captions; the same keys.

    Args:
        scores: (n_images, n_captions); every one must be finite, those between two blocks too.
        caption_image: (n_captions,) integers, the row of each caption's image.
        folds: number of blocks; their sizes differ by at most one image.

    Raises:
        ItmError: as ``retrieval_metrics``; more folds than images.

    >>> coco_1k_folds(np.eye(10), np.arange(10), folds=5)["txt_r1"]
    100.0
    """
    matrix = score_array(scores)
    return count_matrix(matrix, FoldCounter(image_ids(caption_image, *matrix.shape), len(matrix), folds))
