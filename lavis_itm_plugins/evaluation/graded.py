"""Metrics against continuous relevance labels: Kendall's tau-b, nDCG, NCS@K, R-precision and mAP@R, per direction.

``scores[i, j]`` = image i (row), caption j (column), and so ``labels``. Image-to-text (``txt_*``): an image ranks all
captions. Text-to-image (``img_*``): a caption ranks all images. A tie is broken against the query: of candidates with
equal scores the one with the lower label comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import ImageIds, Scores, check_finite, image_ids, score_array
from lavis_itm_plugins.evaluation.tiles import Items, ScoreFunction, score_tiles

Floats: TypeAlias = NDArray[np.float64]
ScoreBlock: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.int64]], Scores]  # of image rows and caption rows

TAU_TOP = (2, 5, 10, 20, 50)
NCS_TOP = (1, 5, 10)
QUERIES = 500  # of a direction, unless more are asked for
_CELLS = 2**22  # scores and labels of queries held at a time


def kendall_tau(scores: NDArray[Any], labels: NDArray[Any], *, ties: str = "b") -> Floats:
    """Kendall's coefficient of each row, (Q,), NaN where it is undefined; from all pairs, so for short lists.

    Args:
        scores, labels: (Q, K); memory grows with Q x K x K.
        ties: "b" divides by the pairs that are no tie in either, and is undefined for a constant list | "a" divides by
            all pairs.

    >>> kendall_tau(np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]), np.array([[3, 1, 2], [1, 1, 1]]))
    array([0.33333333,        nan])
    """
    above = np.sign(scores[:, :, None] - scores[:, None, :])
    higher = np.sign(labels[:, :, None] - labels[:, None, :])
    agreement = (above * higher).sum(axis=(1, 2), dtype=np.float64)
    if ties == "a":
        pairs: Any = np.full(len(scores), float(scores.shape[1] * (scores.shape[1] - 1)))
    else:
        pairs = np.sqrt((above != 0).sum(axis=(1, 2), dtype=np.float64) * (higher != 0).sum(axis=(1, 2)))
    return np.divide(agreement, pairs, out=np.full(len(scores), np.nan), where=pairs > 0)


def query_metrics(
    scores: NDArray[Any], labels: NDArray[Any], matches: NDArray[np.bool_], *, relevant_above: float | None = None
) -> dict[str, Floats]:
    """Metrics of each query, (Q,) each, NaN where undefined.

    Args:
        scores, labels: (Q, N), finite; labels at least 0.
        matches: bool (Q, N), True where a candidate belongs to the query.
        relevant_above: candidates with a higher label are relevant for R-precision and mAP@R, as matches always are.

    Returns:
        ``tau``: Kendall's tau-b over all candidates; ``tauK``: over the model's own top K (Ladder loss, Zhou et al.,
        AAAI 2020); ``ndcg`` over all, linear gain; ``ncsK``: labels of the top K over the best possible sum (Biten et
        al., "Is an image worth five sentences?", WACV 2022); ``rprecision`` and ``map_r`` with R relevant candidates
        (Musgrave et al., ECCV 2020; ECCV Caption, ECCV 2022).
    """
    # the last key sorts first: by score, and among equals the less relevant before the more relevant
    order = np.lexsort((labels, -scores), axis=1)
    ranked = np.take_along_axis(labels, order, axis=1).astype(np.float64)
    best = -np.sort(-labels, axis=1).astype(np.float64)
    found = {"tau": np.array([_tau_b(*query) for query in zip(scores, labels, strict=True)])}
    for top in TAU_TOP:
        shown = order[:, :top]
        short = np.take_along_axis(scores, shown, axis=1), ranked[:, :top]
        found[f"tau{top}"] = _in_rows(kendall_tau, *short)
    discount = 1 / np.log2(np.arange(labels.shape[1]) + 2)
    found["ndcg"] = _share(ranked @ discount, best @ discount)
    found |= {f"ncs{top}": _share(ranked[:, :top].sum(axis=1), best[:, :top].sum(axis=1)) for top in NCS_TOP}
    relevant = matches if relevant_above is None else matches | (labels > relevant_above)
    return found | _precisions(np.take_along_axis(relevant, order, axis=1))


def _tau_b(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    # without pairs SciPy warns of each query
    return float(kendalltau(scores, labels).statistic) if len(scores) > 1 else float("nan")


def _in_rows(metric: Callable[..., Floats], *arrays: NDArray[Any]) -> Floats:
    """The metric of a few rows at a time, which bounds the memory of pair tables."""
    step = max(1, _CELLS // max(1, arrays[0].shape[1] ** 2))
    parts = [metric(*(array[start : start + step] for array in arrays)) for start in range(0, len(arrays[0]), step)]
    return np.concatenate(parts) if parts else np.empty(0)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _precisions(hits: NDArray[np.bool_]) -> dict[str, Floats]:
    """R-precision and mAP@R of each row of hits in ranked order."""
    counts = hits.sum(axis=1).astype(np.float64)
    within = hits & (np.arange(hits.shape[1]) < counts[:, None])
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return {
        "rprecision": _share(within.sum(axis=1).astype(np.float64), counts),
        "map_r": _share((precision * within).sum(axis=1), counts),
    }


def graded_metrics(
    scores: Scores, labels: Scores, caption_image: ImageIds, *, relevant_above: float | None = None
) -> dict[str, float]:
    """Graded metrics of a score matrix, both directions.

    Args:
        scores: (n_images, n_captions), array or tensor.
        labels: (n_images, n_captions), at least 0: how relevant caption j is for image i.
        caption_image: (n_captions,) integers, the row of each caption's image.
        relevant_above: see ``query_metrics``.

    Returns:
        The metrics of ``query_metrics`` with ``txt_`` (image-to-text) and ``img_`` (text-to-image) before their names,
        as means over the queries where they are defined (a metric that no query has is not there);
        ``txt_tau_undefined`` and the like: how many queries were left out; ``tau``: the mean of both directions.
        Coefficients and shares, not percent.

    Raises:
        ItmError: scores or labels that are not finite, shapes that do not fit, a negative label.

    >>> metrics = graded_metrics(np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[1.0, 0.4], [0.5, 1.0]]), [0, 1])
    >>> metrics["txt_tau"], metrics["tau"], metrics["txt_tau_undefined"], metrics["img_rprecision"]
    (1.0, 1.0, 0.0, 1.0)
    """
    matrix, targets = score_array(scores), score_array(labels)
    if targets.shape != matrix.shape:
        raise ItmError(f"labels has shape {targets.shape}; the scores have {matrix.shape}")
    ids = image_ids(caption_image, *matrix.shape)
    return graded_queries(matrix_block(matrix), matrix_block(targets), ids, queries=None, relevant_above=relevant_above)


def matrix_block(matrix: NDArray[Any]) -> ScoreBlock:
    """Blocks (image rows, caption rows) of a matrix, of scores or of labels."""
    return lambda rows, columns: matrix[np.ix_(rows, columns)]


def score_block(
    images: Items, captions: Items, score: ScoreFunction, *, memory_budget_mb: float = 1024, bytes_per_pair: int = 16
) -> ScoreBlock:
    """Blocks of scores from embeddings that take an array of rows as an index; scored when they are asked for.

    ``memory_budget_mb`` and ``bytes_per_pair`` as in ``score_tiles``.
    """
    limits: dict[str, Any] = {"memory_budget_mb": memory_budget_mb, "bytes_per_pair": bytes_per_pair}

    def block(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        scores = np.empty((len(rows), len(columns)), dtype=np.float32)
        chosen = _rows_of(images, rows), _rows_of(captions, columns)
        for top, left, tile in score_tiles(*chosen, score, **limits):
            scores[top, left] = score_array(tile)
        return scores

    return block


def _rows_of(items: Any, rows: NDArray[np.int64]) -> Any:
    return items if len(rows) == len(items) else items[rows]


def graded_queries(
    scores: ScoreBlock | Sequence[ScoreBlock],
    labels: ScoreBlock,
    caption_image: NDArray[np.int64],
    *,
    queries: int | None = QUERIES,
    relevant_above: float | None = None,
) -> dict[str, float]:
    """As ``graded_metrics``, from blocks (image rows, caption rows) of scores and labels; no whole matrix is held.

    ``scores`` is one function, or one for image-to-text and one for text-to-image. Of each direction ``queries`` are
    drawn, always the same, where there are more; None takes all. Every query ranks all candidates.
    """
    by_image, by_caption = (scores, scores) if callable(scores) else scores
    images, captions = np.arange(int(caption_image.max()) + 1), np.arange(len(caption_image))
    metrics: dict[str, float] = {}
    for name, all_queries, candidates in (("txt", images, captions), ("img", captions, images)):
        parts: list[dict[str, Floats]] = []
        for rows in _drawn(all_queries, queries, len(candidates)):
            pair = (rows, candidates) if name == "txt" else (candidates, rows)
            given, wanted = score_array((by_image if name == "txt" else by_caption)(*pair)), score_array(labels(*pair))
            _check(given, wanted, pair)
            matches = pair[0][:, None] == caption_image[pair[1]]
            block = (given, wanted, matches) if name == "txt" else (given.T, wanted.T, matches.T)
            parts.append(query_metrics(*block, relevant_above=relevant_above))
        metrics |= _means(name, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    if "txt_tau" in metrics and "img_tau" in metrics:
        metrics["tau"] = (metrics["txt_tau"] + metrics["img_tau"]) / 2
    return metrics


def _drawn(rows: NDArray[np.int64], queries: int | None, n_candidates: int) -> Iterator[NDArray[np.int64]]:
    """At most ``queries`` rows in order, a few at a time."""
    if queries is not None and queries < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, queries, replace=False))
    step = max(1, _CELLS // n_candidates)
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _check(scores: NDArray[Any], labels: NDArray[Any], rows: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    check_finite(scores)
    if not np.isfinite(labels).all() or labels.min(initial=0) < 0:
        image, caption = (int(part[0]) for part in np.nonzero(~(labels >= 0) | np.isinf(labels)))
        where = f"image {rows[0][image]}, caption {rows[1][caption]}"
        raise ItmError(f"the label of {where} is {labels[image, caption]}; give finite numbers of at least 0")


def _means(side: str, values: dict[str, Floats]) -> dict[str, float]:
    """Means over the defined queries, nothing without any, and how many were left out for Kendall's tau."""
    metrics: dict[str, float] = {}
    for name, queries in values.items():
        defined = queries[~np.isnan(queries)]
        if len(defined):
            metrics[f"{side}_{name}"] = float(defined.mean())
        if name.startswith("tau"):
            metrics[f"{side}_{name}_undefined"] = float(len(queries) - len(defined))
    return metrics
