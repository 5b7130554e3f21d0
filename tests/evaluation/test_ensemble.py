"""Ensembles: the official two-model metrics, and tiles that equal the mean of whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FIXTURES

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import (
    JointItems,
    coco_1k_folds,
    ensemble_scores,
    evaluate_tiles,
    joint_score,
    retrieval_metrics,
)

FIXTURE = FIXTURES / "golden_candidates.npz"
OWNERS = np.arange(150) // 5


@pytest.fixture(scope="module")
def golden():
    return np.load(FIXTURE)


@pytest.fixture(scope="module")
def embeds(golden):
    """Both models' images, of which the archive repeats each five times, and captions."""
    return [(golden[f"eval__in_im{model}"][::5], golden[f"eval__in_cap{model}"]) for model in (1, 2)]


@pytest.mark.parametrize(("models", "name"), [([0, 1], "ens"), ([0], "single")])
def test_golden_metrics(golden, embeds, models, name):
    scores = [embeds[model][0] @ embeds[model][1].T for model in models]
    metrics = retrieval_metrics(ensemble_scores(scores), OWNERS)
    for side, direction in (("txt", "i2t"), ("img", "t2i")):
        found = [metrics[f"{side}_{key}"] for key in ("r1", "r5", "r10", "medr", "meanr")]
        np.testing.assert_allclose(found, golden[f"eval__out_{direction}_{name}"], rtol=1e-12)


def test_tiles_of_several_models_equal_the_mean_of_their_matrices(embeds):
    mean = ensemble_scores([images @ captions.T for images, captions in embeds])
    images, captions = (JointItems(part) for part in zip(*embeds, strict=True))
    scores = [lambda a, b: a @ b.T] * 2
    found = evaluate_tiles(images, captions, joint_score(scores), OWNERS, memory_budget_mb=0.02, folds=3)
    expected = retrieval_metrics(mean, OWNERS)
    expected |= {f"folds_{key}": value for key, value in coco_1k_folds(mean, OWNERS, folds=3).items()}
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_model_with_itself_is_that_model(embeds):
    scores = torch.from_numpy(embeds[0][0] @ embeds[0][1].T).float()
    for times in (1, 2, 4):
        np.testing.assert_array_equal(ensemble_scores([scores] * times), scores.numpy())
    np.testing.assert_allclose(ensemble_scores([scores] * 3), scores.numpy(), rtol=1e-6)


def test_inputs_are_left_alone_and_must_fit():
    one, other = np.ones((2, 3)), np.zeros((2, 3))
    ensemble_scores([one, other])
    assert one.all() and not other.any()
    with pytest.raises(ItmError, match=r"shapes \[\(2, 3\), \(3, 2\)\]; give at least one matrix"):
        ensemble_scores([one, other.T])
    with pytest.raises(ItmError, match="give at least one matrix"):
        ensemble_scores([])
    with pytest.raises(ItmError, match=r"the models encoded \[2, 3\] items"):
        JointItems([one, other.T])
