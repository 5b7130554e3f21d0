"""Graded metrics against golden numbers, SciPy, loops, and rankings whose value is known."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES, check_extract
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import graded_metrics, graded_queries, matrix_block, score_block
from lavis_itm_plugins.evaluation.graded import NCS_TOP, TAU_TOP, kendall_tau, query_metrics

FIXTURE = FIXTURES / "golden_bcls.npz"
QUERY_NAMES = {"tau", "ndcg", "rprecision", "map_r", *(f"tau{k}" for k in TAU_TOP), *(f"ncs{k}" for k in NCS_TOP)}


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest):
    shared = request.param == "shared"
    return np.load(request.getfixturevalue("shared") / "golden" / "bcls.npz" if shared else FIXTURE)


@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden(golden, case: str) -> None:
    scores, labels = golden[f"{case}.S"], golden[f"{case}.Y"]
    gap = dict(zip(golden["params.names"].tolist(), golden["params.values"].tolist(), strict=True))["gap"]
    own = np.eye(len(scores), dtype=bool)
    by_image = query_metrics(scores, labels, own, relevant_above=gap)
    by_caption = query_metrics(scores.T, labels.T, own, relevant_above=gap)
    for name, direction in enumerate((by_image, by_caption)):
        np.testing.assert_allclose(direction["tau"], golden[f"{case}.metric.tau_b"][name], atol=1e-12)
    exact = [kendall_tau(scores, labels, ties="a"), kendall_tau(scores.T, labels.T, ties="a")]
    np.testing.assert_allclose(exact, golden[f"{case}.metric.tau_a"], atol=1e-12)
    precisions = np.stack([by_image["rprecision"], by_image["map_r"]], axis=1)
    np.testing.assert_allclose(precisions, golden[f"{case}.metric.rprec_mapr_i2t"], atol=1e-12)


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    check_extract(FIXTURE, shared / "golden" / "bcls.npz")


def naive_query(scores: list[float], labels: list[float], matches: list[bool], above: float | None) -> dict[str, float]:
    """One query, position by position; the order is of tuples."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], labels[j]))
    ranked, best = [labels[j] for j in order], sorted(labels, reverse=True)

    def tau(chosen: list[int]) -> float:
        if len(chosen) < 2:
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kendalltau([scores[j] for j in chosen], [labels[j] for j in chosen]).statistic

    def share(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    found = {"tau": tau(order), **{f"tau{k}": tau(order[:k]) for k in TAU_TOP}}
    gains = [sum(y / math.log2(p + 2) for p, y in enumerate(values)) for values in (ranked, best)]
    found |= {"ndcg": share(*gains), **{f"ncs{k}": share(sum(ranked[:k]), sum(best[:k])) for k in NCS_TOP}}
    hits = [matches[j] or (above is not None and labels[j] > above) for j in order]
    number = sum(hits)
    found["rprecision"] = share(sum(hits[:number]), number)
    found["map_r"] = share(sum(hits[k] * sum(hits[: k + 1]) / (k + 1) for k in range(number)), number)
    return found


@st.composite
def matrices(draw: st.DrawFn):
    """Scores and labels with many ties, and each caption's image."""
    n_images = draw(st.integers(1, 4))
    caption_image = draw(st.permutations([*range(n_images), *draw(st.lists(st.integers(0, n_images - 1), max_size=6))]))
    cells = n_images * len(caption_image)
    scores, labels = (draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells)) for _ in range(2))
    shape = n_images, len(caption_image)
    return np.reshape(scores, shape) / 4, np.reshape(labels, shape) / 4, caption_image


@settings(max_examples=40)
@given(data=matrices(), above=st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_equals_the_loops(data, above) -> None:
    scores, labels, caption_image = data
    metrics = graded_metrics(scores, labels, caption_image, relevant_above=above)
    own = np.arange(len(scores))[:, None] == np.array(caption_image)
    for side, arrays in (("txt", (scores, labels, own)), ("img", (scores.T, labels.T, own.T))):
        queries = [naive_query(*(row.tolist() for row in rows), above) for rows in zip(*arrays, strict=True)]
        for name in QUERY_NAMES:
            defined = [query[name] for query in queries if not math.isnan(query[name])]
            expected = sum(defined) / len(defined) if defined else None
            assert metrics.get(f"{side}_{name}") == pytest.approx(expected, abs=1e-9), name
            if name.startswith("tau"):
                assert metrics[f"{side}_{name}_undefined"] == len(queries) - len(defined)
    both = [metrics[name] for name in ("txt_tau", "img_tau") if name in metrics]
    assert metrics.get("tau") == pytest.approx(sum(both) / 2 if len(both) == 2 else None)


def test_the_order_of_the_labels_is_the_best_and_its_reverse_the_worst() -> None:
    labels = np.random.default_rng(0).random((6, 30))
    best, worst = (graded_metrics(scores, labels, np.arange(30) // 5) for scores in (labels**3, -labels))
    assert best["tau"] == 1 and worst["tau"] == -1
    for name in ("ndcg", "ncs1", "ncs10", "tau10"):
        assert best[f"txt_{name}"] == pytest.approx(1) and worst[f"txt_{name}"] < 1


def test_equal_scores_gain_nothing() -> None:
    """A collapsed model: no tau, and the least relevant candidates first."""
    labels = np.random.default_rng(0).random((4, 20))
    labels[np.arange(20) // 5, np.arange(20)] = 1
    metrics = graded_metrics(np.ones((4, 20)), labels, np.arange(20) // 5)
    assert (
        not metrics.keys() & {"tau", "txt_tau", "img_tau5"}
        and metrics["txt_tau_undefined"] == 4
        and metrics["img_tau_undefined"] == 20
    )
    assert metrics["txt_rprecision"] == metrics["txt_map_r"] == metrics["img_rprecision"] == 0
    assert metrics["txt_ncs1"] == pytest.approx(labels.min(axis=1).mean())


def test_several_relevant_captions() -> None:
    """Caption 2 is no match of image 0, but relevant: of the two or three relevant ones, how many come first."""
    scores, labels = np.array([[0.9, 0.1, 0.8], [0.0, 0.0, 1.0]]), np.array([[1.0, 1.0, 0.7], [0.1, 0.1, 1.0]])
    matches_only = graded_metrics(scores, labels, [0, 0, 1])
    assert (matches_only["txt_rprecision"], matches_only["txt_map_r"]) == (0.75, 0.75)
    graded = graded_metrics(scores, labels, [0, 0, 1], relevant_above=0.5)
    assert (graded["txt_rprecision"], graded["txt_map_r"]) == (1.0, 1.0)


def test_blocks_and_samples_give_what_the_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(12, 8, generator=generator), torch.randn(60, 8, generator=generator)
    labels, ids = np.random.default_rng(0).random((12, 60)), np.random.default_rng(1).permutation(np.arange(60) // 5)
    whole = graded_metrics(images @ captions.T, labels, ids)
    tiles = []

    def score(a, b):
        tiles.append(len(a) * len(b))
        return a @ b.T

    blocks = score_block(images, captions, score, memory_budget_mb=0.001, bytes_per_pair=256)
    for cells in (1, 200, 2**22):
        monkeypatch.setitem(graded_queries.__globals__, "_CELLS", cells)
        assert graded_queries(blocks, matrix_block(labels), ids, queries=None) == pytest.approx(whole, abs=1e-6)
    # 0.001 MB of 256 bytes a pair
    assert max(tiles) == 4
    few = graded_queries(blocks, matrix_block(labels), ids, queries=6)
    assert few == graded_queries(blocks, matrix_block(labels), ids, queries=6) and few["tau"] != whole["tau"]
    assert few["tau"] == pytest.approx(whole["tau"], abs=0.2)
    both = matrix_block((images @ captions.T).numpy()), matrix_block(np.zeros((12, 60)))
    split = graded_queries(both, matrix_block(labels), ids, queries=None)
    assert split["txt_tau"] == pytest.approx(whole["txt_tau"], abs=1e-6) and "img_tau" not in split


def test_a_sample_ranks_all_candidates() -> None:
    asked: list[tuple[int, int]] = []

    def labels(rows, columns):
        asked.append((len(rows), len(columns)))
        return np.random.default_rng(0).random((len(rows), len(columns)))

    scores = matrix_block(np.random.default_rng(1).random((20, 100)))
    graded_queries(scores, labels, np.arange(100) // 5, queries=7)
    assert asked == [(7, 100), (20, 7)]


LABELS = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), r"labels has shape \(2, 3\); the scores have \(2, 2\)"),
        (np.array([[0, np.nan], [0, 0]]), LABELS, "1 of 4 scores are not finite"),
        (np.eye(2), np.array([[0.5, 0.1], [-0.2, 1]]), "the label of image 1, caption 0 is -0.2; give finite numbers"),
        (np.eye(2), np.array([[0.5, np.nan], [0, 1]]), "the label of image 0, caption 1 is nan"),
        (np.eye(2), np.array([[0.5, np.inf], [0, 1]]), "the label of image 0, caption 1 is inf"),
    ],
)
def test_bad_input_is_named(scores, labels, message) -> None:
    with pytest.raises(ItmError, match=message):
        graded_metrics(scores, labels, [0, 1])
