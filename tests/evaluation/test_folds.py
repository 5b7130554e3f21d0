"""coco_1k_folds and the folds of evaluate_tiles: the mean of the metrics of consecutive blocks of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import FOLDS_PREFIX, FoldCounter, coco_1k_folds, evaluate_tiles, retrieval_metrics


def naive_folds(scores: np.ndarray, caption_image: np.ndarray, folds: int) -> dict[str, float]:
    n_images, each = len(scores), []
    for fold in range(folds):
        images = np.arange(n_images * fold // folds, n_images * (fold + 1) // folds)
        captions = np.flatnonzero(np.isin(caption_image, images))
        block = scores[np.ix_(images, captions)]
        each.append(retrieval_metrics(block, caption_image[captions] - images[0]))
    return {key: sum(metrics[key] for metrics in each) / folds for key in each[0]}


@settings(deadline=None, max_examples=100)
@given(
    n_images=st.integers(1, 12),
    captions_per_image=st.integers(1, 4),
    folds=st.integers(1, 12),
    in_order=st.booleans(),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([64e-6, 5e-4, 1.0]),
)
def test_equals_the_mean_over_blocks(n_images, captions_per_image, folds, in_order, seed, budget) -> None:
    generator, folds = np.random.default_rng(seed), min(folds, n_images)
    caption_image = np.sort(np.concatenate([np.arange(n_images), generator.integers(0, n_images, captions_per_image)]))
    if not in_order:
        caption_image = generator.permutation(caption_image)
    images = generator.integers(-2, 3, (n_images, 2)).astype("f4")
    captions = generator.integers(-2, 3, (len(caption_image), 2)).astype("f4")
    expected = naive_folds(images @ captions.T, caption_image, folds)
    metrics = coco_1k_folds(images @ captions.T, caption_image, folds=folds)
    assert metrics == pytest.approx(expected)
    assert list(metrics) == list(expected)
    both = evaluate_tiles(images, captions, lambda a, b: a @ b.T, caption_image, folds=folds, memory_budget_mb=budget)
    assert {key.removeprefix(FOLDS_PREFIX): both[key] for key in both if key.startswith(FOLDS_PREFIX)} == metrics
    assert {key: both[key] for key in metrics} == retrieval_metrics(images @ captions.T, caption_image)


def test_five_folds_of_coco_are_easier_than_the_whole() -> None:
    generator = np.random.default_rng(0)
    caption_image = np.arange(500) // 5
    scores = generator.standard_normal((100, 500)) + 2 * (np.arange(100)[:, None] == caption_image)
    folds, whole = coco_1k_folds(scores, caption_image), retrieval_metrics(scores, caption_image)
    assert folds["rsum"] > whole["rsum"] > 0
    assert folds["agg_metrics"] == folds["rsum"] == pytest.approx(3 * (folds["txt_r_mean"] + folds["img_r_mean"]))


def test_one_fold_is_the_whole() -> None:
    scores, caption_image = np.random.default_rng(0).standard_normal((6, 12)), np.arange(12) // 2
    assert coco_1k_folds(scores, caption_image, folds=1) == retrieval_metrics(scores, caption_image)


def test_non_finite_score_between_two_folds_is_refused() -> None:
    scores = np.eye(4)
    scores[0, 3] = np.nan
    with pytest.raises(ItmError, match="the first is nan at image 0, caption 3"):
        coco_1k_folds(scores, np.arange(4), folds=2)


@pytest.mark.parametrize("folds", [0, 5, -1])
def test_number_of_folds_is_checked(folds: int) -> None:
    with pytest.raises(ItmError, match=f"folds is {folds}; give 1 to 4"):
        coco_1k_folds(np.eye(4), np.arange(4), folds=folds)


def test_image_without_a_caption_is_named_by_its_row_in_the_whole() -> None:
    with pytest.raises(ItmError, match="the first is image 3"):
        coco_1k_folds(np.zeros((4, 3)), [0, 1, 2], folds=2)


def test_fold_counter_needs_every_tile() -> None:
    counter = FoldCounter(np.arange(4), n_images=4, folds=2)
    upper = slice(0, 2), slice(0, 4)
    assert counter.holds_positives(*upper)
    assert not counter.holds_positives(slice(0, 2), slice(2, 4))
    counter.find_positives(*upper, np.eye(4)[:2])
    counter.update(*upper, np.eye(4)[:2])
    with pytest.raises(ItmError, match="4 scores are missing"):
        counter.metrics()
    with pytest.raises(ItmError, match="the tile has shape"):
        counter.update(*upper, np.eye(4))
