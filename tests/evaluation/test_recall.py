"""retrieval_metrics and evaluate_tiles against a sort, official numbers, ties, collapse and NaN."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from golden import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import RecallCounter, coco_1k_folds, evaluate_tiles, retrieval_metrics, score_tiles

FIXTURE = FIXTURES / "golden_triplet.npz"
KEYS = [
    *("txt_r1", "txt_r5", "txt_r10", "txt_medr", "txt_meanr", "img_r1", "img_r5", "img_r10", "img_medr", "img_meanr"),
    *("txt_r_mean", "img_r_mean", "r_mean", "rsum", "agg_metrics"),
]


def naive_ranks(queries: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Rank of the best match in a sort that puts a match behind every tied item that does not match."""
    ranks = []
    for scores, match in zip(queries, matches, strict=True):
        order = np.lexsort((match, -scores))
        ranks.append(int(np.flatnonzero(match[order])[0]))
    return np.array(ranks)


def naive_metrics(scores: np.ndarray, caption_image: np.ndarray) -> dict[str, float]:
    matches = np.arange(len(scores))[:, None] == caption_image
    metrics = {}
    for name, ranks in (("txt", naive_ranks(scores, matches)), ("img", naive_ranks(scores.T, matches.T))):
        for k in (1, 5, 10):
            metrics[f"{name}_r{k}"] = 100 * sum(ranks < k) / len(ranks)
        metrics[f"{name}_medr"] = np.median(ranks) // 1 + 1
        metrics[f"{name}_meanr"] = sum(ranks) / len(ranks) + 1
        metrics[f"{name}_r_mean"] = sum(metrics[f"{name}_r{k}"] for k in (1, 5, 10)) / 3
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    metrics["rsum"] = metrics["agg_metrics"] = 6 * metrics["r_mean"]
    return metrics


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and a caption-to-image map in any order with at least one caption per image."""
    n_images = draw(st.integers(1, 12))
    extra = draw(st.lists(st.integers(0, n_images - 1), max_size=20))
    caption_image = np.array(draw(st.permutations([*range(n_images), *extra])), dtype=np.int64)
    levels = draw(st.sampled_from([1, 3, 1000]))
    seed = draw(st.integers(0, 2**31))
    scores = np.random.default_rng(seed).integers(0, levels, (n_images, len(caption_image))) / 8 - 1
    return scores, caption_image


@settings(deadline=None, max_examples=200)
@given(ranking=rankings(), kind=st.sampled_from(["f2", "f4", "f8", "F", "i8", "bfloat16", "tensor", "strided"]))
def test_equals_a_sort(ranking, kind) -> None:
    scores, caption_image = ranking
    forms = {
        "F": lambda: np.asfortranarray(scores),
        "i8": lambda: (8 * scores).astype(np.int64),
        "bfloat16": lambda: torch.from_numpy(scores).bfloat16(),
        "tensor": lambda: torch.from_numpy(scores).requires_grad_(),
        "strided": lambda: np.repeat(scores, 2, axis=1)[:, ::2],
    }
    given_scores = forms[kind]() if kind in forms else scores.astype(kind)
    exact = (
        given_scores.double().detach().numpy() if isinstance(given_scores, torch.Tensor) else given_scores.astype("f8")
    )
    metrics = retrieval_metrics(given_scores, caption_image if kind != "tensor" else torch.from_numpy(caption_image))
    assert metrics == pytest.approx(naive_metrics(exact, caption_image), rel=1e-12)
    assert list(metrics) == KEYS
    assert all(type(value) is float for value in metrics.values())


@settings(deadline=None, max_examples=60)
@given(ranking=rankings(), budget=st.sampled_from([16e-6, 1e-3, 1.0]), dimension=st.integers(1, 4))
def test_tiles_give_the_metrics_of_the_matrix(ranking, budget, dimension) -> None:
    """Small integers have exact products, so that tiles and matrix must agree to the last tie."""
    scores, caption_image = ranking
    generator = np.random.default_rng(dimension)
    images = generator.integers(-2, 3, (scores.shape[0], dimension)).astype("f4")
    captions = generator.integers(-2, 3, (scores.shape[1], dimension)).astype("f4")
    expected = retrieval_metrics(images @ captions.T, caption_image)
    options = {"memory_budget_mb": budget}
    assert evaluate_tiles(images, captions, lambda a, b: a @ b.T, caption_image, **options) == expected
    tensors = torch.from_numpy(images), torch.from_numpy(captions)
    assert evaluate_tiles(*tensors, lambda a, b: a @ b.T, caption_image.tolist(), **options) == expected


def test_golden_official_metrics() -> None:
    golden = np.load(FIXTURE)
    metrics = retrieval_metrics(golden["dbl/eval/sims"], np.arange(100) // 5)
    names = ("r1", "r5", "r10", "medr", "meanr")
    for ours, theirs in (("txt", "i2t"), ("img", "t2i")):
        assert [metrics[f"{ours}_{name}"] for name in names] == pytest.approx(
            golden[f"dbl/eval/{theirs}/r1_r5_r10_medr_meanr"].tolist()
        )
    counter = RecallCounter(np.arange(100) // 5, n_images=20)
    for consume in (counter.find_positives, counter.update):
        consume(slice(0, 20), slice(0, 100), golden["dbl/eval/sims"])
    np.testing.assert_array_equal(counter.image_ranks, golden["dbl/eval/i2t/ranks"])
    np.testing.assert_array_equal(counter.caption_ranks, golden["dbl/eval/t2i/ranks"])


@pytest.mark.parametrize("case", "ACDF")
def test_golden_bcls_recall_at_1(case: str) -> None:
    golden = np.load(FIXTURE)
    metrics = retrieval_metrics(golden[f"bcls/{case}.S"], np.arange(len(golden[f"bcls/{case}.S"])))
    assert [metrics["txt_r1"], metrics["img_r1"]] == pytest.approx(golden[f"bcls/{case}.metric.recall_1_3"][0].tolist())


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_equal_scores_retrieve_nothing(value: float) -> None:
    metrics = retrieval_metrics(np.full((200, 1000), value, dtype=np.float32), np.arange(1000) // 5)
    assert metrics["rsum"] == 0
    assert (metrics["txt_medr"], metrics["img_medr"]) == (996, 200)


def test_a_collapsed_model_retrieves_nothing() -> None:
    vector = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    images, captions, caption_image = vector.expand(300, 64), vector.expand(1500, 64), np.arange(1500) // 5
    for budget in (2, 1024):
        metrics = evaluate_tiles(images, captions, lambda a, b: a @ b.T, caption_image, memory_budget_mb=budget)
        # Not 0: a BLAS may round the same product differently at the edge of a tile.
        assert metrics["rsum"] < 60


def test_twins_tie_across_tiles() -> None:
    """A copy of each image and of its caption scores what the original scores: rank 1 everywhere, never 0."""
    half = torch.randint(-9, 10, (40, 8), generator=torch.Generator().manual_seed(0)).float()
    both = torch.cat([half, half])
    own = -torch.cdist(both, both).square().round()
    assert retrieval_metrics(own, np.arange(80))["txt_meanr"] == 2
    metrics = evaluate_tiles(
        both, both, lambda a, b: -torch.cdist(a, b).square().round(), np.arange(80), memory_budget_mb=0.02
    )
    assert (metrics["txt_r1"], metrics["img_r1"], metrics["txt_meanr"], metrics["img_meanr"]) == (0, 0, 2, 2)


def test_other_captions_of_the_image_never_count_against_it() -> None:
    assert retrieval_metrics(np.array([[0.2, 0.9, 0.2], [0.1, 0.1, 0.1]]), [0, 0, 1])["txt_r1"] == 50
    assert retrieval_metrics(np.ones((1, 7)), np.zeros(7, dtype=int))["rsum"] == 600


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", [(0, 0), (2, 2), (1, 3), (2, 0)])
def test_non_finite_scores_are_refused(value: float, cell: tuple[int, int]) -> None:
    scores = np.eye(3, 4, dtype=np.float32)
    scores[cell] = value
    where = rf"1 of 12 scores are not finite, the first is {value} at image {cell[0]}, caption {cell[1]};"
    with pytest.raises(ItmError, match=where):
        retrieval_metrics(scores, [0, 1, 2, 0])
    with pytest.raises(ItmError, match=rf"the first is {value} at image {cell[0]}, caption {cell[1]};"):
        evaluate_tiles(scores, np.eye(4), lambda a, b: _rows_times(a, b), [0, 1, 2, 0], memory_budget_mb=64e-6)
    scores[0, 1] = np.nan
    with pytest.raises(ItmError, match="2 of 12 scores"):
        retrieval_metrics(torch.from_numpy(scores), [0, 1, 2, 0])


def _rows_times(rows: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    # A product would spread a NaN over its row.
    return rows[:, one_hot.argmax(axis=1)]


@pytest.mark.parametrize(
    ("scores", "caption_image", "message"),
    [
        (np.zeros((3, 3)), [0, 0, 2], "1 of 3 images have no caption, the first is image 1"),
        (np.zeros((2, 2)), [0, 2], "caption 1 has image id 2; ids must be rows of the scores, 0 to 1"),
        (np.zeros((2, 2)), [-1, 1], "caption 0 has image id -1"),
        (np.zeros((2, 3)), [0, 1], "caption_image has 2 entries for 3 captions"),
        (np.zeros((2, 2)), [0.0, 1.0], "caption_image is float64"),
        (np.zeros((2, 2)), [[0, 1]], r"caption_image is int64 of shape \(1, 2\)"),
        (np.zeros(4), [0], r"scores has shape \(4,\)"),
        (np.zeros((2, 2), dtype=bool), [0, 1], "scores is bool"),
        (np.zeros((2, 2), dtype=complex), [0, 1], "scores is complex128"),
        (np.zeros((3, 3)), [0, 1], "caption_image has 2 entries for 3 captions"),
        (np.zeros((0, 0)), [], "there are no images for 0 captions; there is nothing to rank"),
        (np.zeros((1, 0)), [], "1 of 1 images have no caption"),
    ],
)
def test_bad_input_is_named(scores, caption_image, message) -> None:
    with pytest.raises(ItmError, match=message):
        retrieval_metrics(scores, caption_image)


def test_one_image_id_per_caption_is_checked_by_every_entry() -> None:
    for rank in (retrieval_metrics, coco_1k_folds):
        with pytest.raises(ItmError, match="caption_image has 5 entries for 6 captions"):
            rank(np.zeros((5, 6)), range(5))
    with pytest.raises(ItmError, match="caption_image has 2 entries for 3 captions"):
        evaluate_tiles(np.zeros((2, 1)), np.zeros((3, 1)), lambda a, b: a @ b.T, [0, 1])


def test_large_integers_are_compared_exactly() -> None:
    assert retrieval_metrics(2**24 + np.eye(2, dtype=np.int64), [0, 1])["rsum"] == 600


def test_counter_refuses_tiles_out_of_order_missing_or_twice() -> None:
    scores, counter = np.eye(2), RecallCounter([0, 1], n_images=2)
    left, right = (slice(0, 2), slice(0, 1)), (slice(0, 2), slice(1, 2))
    counter.find_positives(*left, scores[left])
    counter.find_positives(*left, scores[left])
    with pytest.raises(ItmError, match="the positives of 1 captions are not known yet"):
        counter.update(*left, scores[left])
    counter.find_positives(*right, scores[right])
    counter.update(*left, scores[left])
    with pytest.raises(ItmError, match="2 scores are missing"):
        counter.metrics()
    counter.update(*right, scores[right])
    assert counter.metrics()["rsum"] == 600
    with pytest.raises(ItmError, match="the tile has shape"):
        counter.update(*left, scores)
    counter.update(*right, scores[right])
    with pytest.raises(ItmError, match="some tiles came twice"):
        counter.metrics()


def test_counter_takes_the_tiles_of_score_tiles_in_two_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(30, 8, generator=generator), torch.randn(90, 8, generator=generator)
    caption_image = torch.randperm(90, generator=generator) // 3
    counter = RecallCounter(caption_image, n_images=30)
    for consume in (counter.find_positives, counter.update):
        for rows, columns, scores in score_tiles(images, captions, lambda a, b: a @ b.T, memory_budget_mb=0.001):
            consume(rows, columns, scores)
    expected = naive_metrics((images @ captions.T).numpy(), caption_image.numpy())
    assert counter.metrics() == pytest.approx(expected)


def products(caption_image: np.ndarray, memory_budget_mb: float) -> float:
    """How many times all pairs are scored."""
    n_images, n_captions, pairs = caption_image.max() + 1, len(caption_image), []

    def score(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        pairs.append(len(images) * len(captions))
        return images @ captions.T

    images, captions = np.ones((n_images, 1), dtype="f4"), np.ones((n_captions, 1), dtype="f4")
    evaluate_tiles(images, captions, score, caption_image, memory_budget_mb=memory_budget_mb)
    return sum(pairs) / (n_images * n_captions)


def test_pairs_are_scored_about_once() -> None:
    in_order = np.arange(2000) // 5  # 400 x 2000 pairs of 4 bytes = 3 MiB
    shuffled = np.random.default_rng(0).permutation(in_order)
    assert products(in_order, memory_budget_mb=0.6) == 1
    for budget in (0.02, 0.1, 0.2, 0.3):
        assert products(in_order, memory_budget_mb=budget) <= 1.1
    assert products(shuffled, memory_budget_mb=5) == 1
    assert 1.5 < products(shuffled, memory_budget_mb=0.6) <= 2


def test_memory_stays_within_the_budget() -> None:
    images, captions = np.ones((1000, 1), dtype="f4"), np.ones((5000, 1), dtype="f4")  # 20 MB of scores
    for caption_image in (np.arange(5000) // 5, np.arange(5000) % 1000):
        tracemalloc.start()
        evaluate_tiles(images, captions, lambda a, b: a @ b.T, caption_image, memory_budget_mb=2, folds=5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20
