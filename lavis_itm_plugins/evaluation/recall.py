"""Recall@K, rsum, median and mean rank in both directions, from a score matrix or from its tiles.

``scores[i, j]`` = image i (row), caption j (column); ``caption_image[j]`` = the row of caption j's image.
Image-to-text (``txt_*``): the rank of an image is that of its best caption. Text-to-image (``img_*``): of its image.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import ImageIds, Scores, check_finite, image_ids, score_array
from lavis_itm_plugins.evaluation.tiles import tile_grid

TOP = (1, 5, 10)


class TileCounter(Protocol):
    """What turns tiles into metrics in two passes: first the tiles that hold positive pairs, then every tile."""

    def holds_positives(self, rows: slice, columns: slice) -> bool:
        """Whether an image of the tile is the image of one of its captions."""

    def find_positives(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Keep the scores of the tile's positive pairs."""

    def update(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Count the tile."""

    def metrics(self) -> dict[str, float]:
        """What was counted, once every tile was."""


class RecallCounter:
    """Counts, tile by tile, how many items are scored at least as high as the right one. Memory: two numbers per item.

    First ``find_positives`` on every tile that ``holds_positives``, then ``update`` on every tile once, in any order.
    A rank is a count of comparisons, which costs a few percent of the product that makes the scores; sorting costs
    three times the product. A tied item that does not match counts against the query, so a collapsed model has
    recall 0, not 100. Matching items never count: a positive cannot outrank itself.

    >>> counter = RecallCounter([0, 1], n_images=2)
    >>> scores = np.array([[0.9, 0.2], [0.3, 0.1]])
    >>> tile = slice(0, 2), slice(0, 2)
    >>> counter.find_positives(*tile, scores)
    >>> counter.update(*tile, scores)
    >>> counter.image_ranks, counter.caption_ranks      # 0 = the right one came first
    (array([0, 1]), array([0, 1]))
    >>> counter.metrics()["img_r1"]
    50.0
    """

    def __init__(self, caption_image: ImageIds, n_images: int) -> None:
        self.caption_image = image_ids(caption_image, n_images)
        n_captions = len(self.caption_image)
        self.image_ranks = np.zeros(n_images, dtype=np.int64)
        self.caption_ranks = np.zeros(n_captions, dtype=np.int64)
        # NaN = not found yet. float64 holds float32 scores exactly, so casting back changes no comparison.
        self._own_score = np.full(n_captions, np.nan)
        self._best_score = np.full(n_images, np.nan)
        self._positives_left = n_captions
        self._cells_left = n_images * n_captions

    def holds_positives(self, rows: slice, columns: slice) -> bool:
        """Whether an image of the tile is the image of one of its captions."""
        return bool(self._own_cells(rows, columns)[0].size)

    def find_positives(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Keep the scores of the tile's positive pairs.

        They come from the tiles that are counted later: a separate product differs by an ulp, which breaks ties.
        """
        tile = tile_array(rows, columns, scores)
        images, captions = self._own_cells(rows, columns)
        own = tile[images, captions]
        captions = captions + columns.start
        self._positives_left -= int(np.isnan(self._own_score[captions]).sum())
        self._own_score[captions] = own
        np.fmax.at(self._best_score, rows.start + images, own)

    def update(self, rows: slice, columns: slice, scores: Scores) -> None:
        """Count the tile. Raises ItmError on scores that are not finite and on positives not found before."""
        tile = tile_array(rows, columns, scores)
        check_finite(tile, rows.start, columns.start)
        if self._positives_left:
            raise ItmError(
                f"the positives of {self._positives_left} captions are not known yet; show every tile that "
                "holds_positives to find_positives before the first update"
            )
        best, own = self._best_score[rows].astype(tile.dtype), self._own_score[columns].astype(tile.dtype)
        # count_nonzero along an axis would add int64 numbers, which takes twice as long.
        self.image_ranks[rows] += (tile >= best[:, None]).sum(axis=1, dtype=np.uint32)
        self.caption_ranks[columns] += (tile >= own).sum(axis=0, dtype=np.uint32)
        images, captions = self._own_cells(rows, columns)
        matching = tile[images, captions]
        np.subtract.at(self.image_ranks, rows.start + images, matching >= best[images])
        np.subtract.at(self.caption_ranks, columns.start + captions, matching >= own[captions])
        self._cells_left -= tile.size

    def metrics(self) -> dict[str, float]:
        """The metrics of ``retrieval_metrics``; ItmError unless every cell was counted once."""
        if self._cells_left:
            state = f"{self._cells_left} scores are missing" if self._cells_left > 0 else "some tiles came twice"
            raise ItmError(f"{state}; update the counter with every tile once")
        return rank_metrics(self.image_ranks, self.caption_ranks)

    def _own_cells(self, rows: slice, columns: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Positions, inside the tile, of its positive pairs.
        images = self.caption_image[columns] - rows.start
        captions = np.flatnonzero((images >= 0) & (images < rows.stop - rows.start))
        return images[captions], captions


def tile_array(rows: slice, columns: slice, scores: Scores) -> NDArray[Any]:
    """The tile's scores as ``score_array``; ItmError unless they fill its rows and columns."""
    tile = score_array(scores)
    if tile.shape != (rows.stop - rows.start, columns.stop - columns.start):
        raise ItmError(f"the tile has shape {tile.shape}; it must fill images {rows} and captions {columns}")
    return tile


def rank_metrics(image_ranks: NDArray[Any], caption_ranks: NDArray[Any]) -> dict[str, float]:
    """Metrics from 0-based ranks of images' captions and captions' images; recalls in percent.

    >>> rank_metrics(np.array([0, 1, 7]), np.array([0]))["txt_medr"]
    2.0
    """
    metrics: dict[str, float] = {}
    for name, ranks in (("txt", image_ranks), ("img", caption_ranks)):
        metrics |= {f"{name}_r{k}": 100.0 * np.count_nonzero(ranks < k) / len(ranks) for k in TOP}
        metrics |= {f"{name}_medr": float(np.floor(np.median(ranks)) + 1), f"{name}_meanr": float(np.mean(ranks) + 1)}
    return _with_sums(metrics)


def join_directions(by_image: dict[str, float], by_caption: dict[str, float]) -> dict[str, float]:
    """Image-to-text of one set of metrics with text-to-image of another: for networks that score each by itself.

    >>> first, second = rank_metrics(np.array([0]), np.array([9])), rank_metrics(np.array([9]), np.array([0]))
    >>> join_directions(first, second)["rsum"]
    600.0
    """
    sides = {"txt": by_image, "img": by_caption}
    return _with_sums({key: value for side, part in sides.items() for key, value in part.items() if key[:3] == side})


def _with_sums(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of both directions with their means and sums."""
    recalls = {name: [metrics[f"{name}_r{k}"] for k in TOP] for name in ("txt", "img")}
    metrics |= {f"{name}_r_mean": sum(values) / len(TOP) for name, values in recalls.items()}
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    metrics["rsum"] = sum(recalls["txt"]) + sum(recalls["img"])
    metrics["agg_metrics"] = metrics["rsum"]
    return metrics


def count_matrix(matrix: NDArray[Any], counter: TileCounter) -> dict[str, float]:
    """The counter's metrics of a whole score matrix (a ``score_array``), which is read block by block."""
    check_finite(matrix)
    counter.find_positives(slice(0, matrix.shape[0]), slice(0, matrix.shape[1]), matrix)
    for rows, columns in tile_grid(*matrix.shape):
        counter.update(rows, columns, matrix[rows, columns])
    return counter.metrics()


def retrieval_metrics(scores: Scores, caption_image: ImageIds) -> dict[str, float]:
    """Retrieval metrics of a score matrix, both directions.

    Args:
        scores: (n_images, n_captions), array or tensor; half precision is compared in float32.
        caption_image: (n_captions,) integers, the row of each caption's image, in any order, any number per image.

    Returns:
        ``txt_r1 txt_r5 txt_r10 txt_medr txt_meanr`` (image-to-text), the same with ``img_`` (text-to-image),
        ``txt_r_mean img_r_mean r_mean rsum`` and ``agg_metrics`` (= rsum). Recalls in percent; a tied item that does
        not match counts against the query; medr = floor(median 0-based rank) + 1, meanr = mean 0-based rank + 1.

    Raises:
        ItmError: scores that are not finite, an image without a caption, an image id that is no row.

    >>> metrics = retrieval_metrics(np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.3]]), [0, 0, 1])
    >>> metrics["txt_r1"], metrics["img_r1"], metrics["txt_meanr"]      # image 1: caption 1 ties with its caption 2
    (50.0, 100.0, 1.5)
    """
    matrix = score_array(scores)
    return count_matrix(matrix, RecallCounter(image_ids(caption_image, *matrix.shape), len(matrix)))
