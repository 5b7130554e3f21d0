"""Scores of cross-attention matchers at evaluation: shared by the ranks, or of a shortlist only."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lavis_itm_plugins.distributed import gather_rows, rank, world_size
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import reranked
from lavis_itm_plugins.evaluation.tiles import ScoreFunction
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.matchers.encode import encode_split
from lavis_itm_plugins.matchers.loading import load_matcher


def shared_score(matcher: Any) -> ScoreFunction:
    """The matcher's `score`; where a pair costs more than a product, each rank scores its share of a tile's images."""
    score: ScoreFunction = matcher.score
    if world_size() == 1 or getattr(matcher, "bytes_per_pair", 0) <= Matcher.bytes_per_pair:
        return score

    def scored(images: Encoded, captions: Encoded) -> Tensor:
        own = np.array_split(np.arange(len(images)), world_size())[rank()]
        start = int(own[0]) if len(own) else 0
        return gather_rows(matcher.score(images[slice(start, start + len(own))], captions))

    return scored


def reranked_scores(matcher: Any, data_loader: Any, checkpoint: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores by which captions are ranked for images, and images for captions, as `evaluation.reranked`.

    The matcher of `checkpoint` chooses k candidates for each query; raises ItmError when one of the two is no matcher.
    """
    if not hasattr(matcher, "encode_images"):
        raise ItmError(f"run.itm.rerank needs a matcher of ours, not {type(matcher).__name__}; leave it out")
    shortlist = load_matcher(checkpoint).to(matcher.device)
    coarse, _ = shortlist.compute_sim_matrix(data_loader)
    images, captions, _ = encode_split(matcher, data_loader)
    return reranked(coarse, images, captions, matcher.score, k=k)
