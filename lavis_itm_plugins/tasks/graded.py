"""Metrics against continuous labels at evaluation, where `run.itm.graded` asks for them."""

from __future__ import annotations

from typing import Any

from lavis_itm_plugins.data.relevance import LabelConfig, split_labels
from lavis_itm_plugins.evaluation import graded_queries
from lavis_itm_plugins.evaluation.graded import ScoreBlock
from lavis_itm_plugins.matchers.encode import captions_of
from lavis_itm_plugins.relevance import RelevanceLabels


class GradedEvaluation:
    """Graded metrics of evaluation splits, whose labels are made once."""

    def __init__(self) -> None:
        # the data set is held too, so that its id stays its own
        self._made: dict[tuple[int, LabelConfig], tuple[Any, RelevanceLabels]] = {}

    def metrics(self, scores: tuple[ScoreBlock, ScoreBlock], dataset: Any, wanted: Any) -> dict[str, float]:
        """Those of `wanted` (a `GradedConfig`), nothing when it names no labels; `scores` of each direction."""
        if wanted.labels is None:
            return {}
        labels = self._labels(dataset, wanted.labels)
        options = {"queries": wanted.queries, "relevant_above": wanted.relevant_above}
        return graded_queries(scores, labels.labels, labels.caption_image, **options)

    def _labels(self, dataset: Any, config: LabelConfig) -> RelevanceLabels:
        key = id(dataset), config
        if key not in self._made:
            split = getattr(getattr(dataset, "split", None), "name", None)
            self._made[key] = dataset, split_labels(config, split, *captions_of(dataset))
        return self._made[key][1]
