"""Evaluation of score matrices and of embeddings, in bounded memory: numpy arrays or tensors in, plain numbers out."""

from lavis_itm_plugins.evaluation.ensemble import JointItems, ensemble_scores, joint_score
from lavis_itm_plugins.evaluation.evaluate import FOLDS_PREFIX, evaluate_tiles
from lavis_itm_plugins.evaluation.folds import FoldCounter, coco_1k_folds
from lavis_itm_plugins.evaluation.graded import graded_metrics, graded_queries, matrix_block, score_block
from lavis_itm_plugins.evaluation.recall import (
    RecallCounter,
    TileCounter,
    join_directions,
    rank_metrics,
    retrieval_metrics,
)
from lavis_itm_plugins.evaluation.rerank import reranked
from lavis_itm_plugins.evaluation.tiles import Items, score_tiles, tile_grid

__all__ = [
    "FOLDS_PREFIX",
    "FoldCounter",
    "Items",
    "JointItems",
    "RecallCounter",
    "TileCounter",
    "coco_1k_folds",
    "ensemble_scores",
    "evaluate_tiles",
    "graded_metrics",
    "graded_queries",
    "join_directions",
    "joint_score",
    "matrix_block",
    "rank_metrics",
    "reranked",
    "retrieval_metrics",
    "score_block",
    "score_tiles",
    "tile_grid",
]
