"""Evaluation of score matrices and of embeddings, in bounded memory: numpy arrays or tensors in, plain numbers out."""

from lavis_itm_plugins.evaluation.evaluate import FOLDS_PREFIX, evaluate_tiles
from lavis_itm_plugins.evaluation.folds import FoldCounter, coco_1k_folds
from lavis_itm_plugins.evaluation.recall import (
    RecallCounter,
    TileCounter,
    join_directions,
    rank_metrics,
    retrieval_metrics,
)
from lavis_itm_plugins.evaluation.tiles import Items, score_tiles, tile_grid

__all__ = [
    "FOLDS_PREFIX",
    "FoldCounter",
    "Items",
    "RecallCounter",
    "TileCounter",
    "coco_1k_folds",
    "evaluate_tiles",
    "join_directions",
    "rank_metrics",
    "retrieval_metrics",
    "score_tiles",
    "tile_grid",
]
