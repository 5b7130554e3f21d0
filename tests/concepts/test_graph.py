"""The concept graph against the reference numbers and against loops; what it says of itself."""

from __future__ import annotations

import io
import math

import networkx as nx
import numpy as np
import pytest
from concepts.conceptnet_lines import assertions
from golden import FIXTURES
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.concepts import (
    build_concept_graph,
    normalised_adjacency,
    read_conceptnet,
    strongest,
    summarise,
)
from lavis_itm_plugins.errors import ItmError

FIXTURE = FIXTURES / "golden_coder.npz"
# what the reference numbers were made from
WORDS = ["man", "dog", "beach", "ball", "red", "run", "sit", "snow", "unseen"]
CAPTIONS = [
    "man dog beach", "dog run beach", "man sit", "red ball dog", "man run snow", "dog snow run",
    "man beach ball", "red ball", "man sit beach", "man", "dog ball run", "snow man red",
]  # fmt: skip
EDGES = (
    "dog CapableOf run 2.0, ball HasProperty red 1.0, snow RelatedTo ball 1.0, man CapableOf sit 3.464, "
    "dog Antonym man 1.0, dog RelatedTo dog 2.0, run IsA sport 1.0, beach RelatedTo snow 0.5, snow RelatedTo beach 0.5"
)
EXACT = {"rtol": 1e-10, "atol": 1e-15}


@pytest.fixture(scope="module")
def known() -> nx.MultiDiGraph:
    return read_conceptnet(io.BytesIO(assertions(EDGES)), WORDS)


def weights(*given, **options) -> np.ndarray:
    return nx.to_numpy_array(build_concept_graph(*given, **options))


def test_golden_graph(known) -> None:
    golden = np.load(FIXTURE)
    cooccurrence = build_concept_graph(CAPTIONS, WORDS)
    np.testing.assert_allclose(nx.to_numpy_array(cooccurrence), golden["graph_a_cooc"], **EXACT)
    np.testing.assert_allclose(normalised_adjacency(cooccurrence), golden["graph_ahat_cooc_only"], **EXACT)
    assert list(cooccurrence) == WORDS
    assert [count for _, count in cooccurrence.nodes(data="count")] == golden["graph_nums"].tolist()
    conceptnet = weights(CAPTIONS, WORDS, source="conceptnet", conceptnet=known)
    np.testing.assert_allclose(conceptnet, golden["graph_a_conceptnet"], **EXACT)
    both = build_concept_graph(CAPTIONS, WORDS, source="both", conceptnet=known)
    np.testing.assert_allclose(normalised_adjacency(both), golden["graph_ahat"], **EXACT)


def test_captions_may_be_words() -> None:
    split = [set(caption.split()) for caption in CAPTIONS]
    assert np.array_equal(weights(split, WORDS), weights(CAPTIONS, WORDS))


def naive(captions, size: int, threshold: float | None, k: int) -> np.ndarray:
    """What each concept receives by co-occurrence, in plain loops."""
    together = np.zeros((size, size))
    for caption in captions:
        for i in set(caption):
            for j in set(caption):
                together[i, j] += 1
    adjacency = np.zeros((size, size))
    for j in range(size):
        column = []
        for i in range(size):
            count = together[i, i]
            given = together[i, j] / count if count and i != j else 0.0
            column.append(5 ** (given - 0.02) - 5**-0.02 if i != j else 0.0)
        best = sorted(range(size), key=lambda i: (-column[i], i))[:k]
        kept = [float(value >= 0.3) if threshold else value * (i in best) for i, value in enumerate(column)]
        for i in range(size):
            adjacency[i, j] = 0.25 * kept[i] / sum(kept) if sum(kept) else 0.0
    return adjacency


@given(
    captions=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=12),
    mode=st.sampled_from(["cvse", "knn"]),
    k=st.integers(1, 7),
)
def test_equals_the_loops(captions, mode, k) -> None:
    words = [f"word{'abcdef'[i]}" for i in range(6)]
    texts = [[words[i] for i in caption] for caption in captions]
    found = weights(texts, words, mode=mode, k=k)
    np.testing.assert_allclose(found, naive(captions, 6, 0.3 if mode == "cvse" else None, k), rtol=1e-12, atol=1e-15)
    received = found.sum(axis=0)
    assert np.all((received == 0) | np.isclose(received, 0.25))
    assert normalised_adjacency(build_concept_graph(texts, words, mode=mode, k=k)).shape == (6, 6)


def test_without_edges_the_adjacency_is_the_identity() -> None:
    assert np.array_equal(normalised_adjacency(build_concept_graph([], WORDS)), np.eye(len(WORDS)))
    empty = build_concept_graph(CAPTIONS, WORDS, source="conceptnet", conceptnet=read_conceptnet(io.BytesIO(), WORDS))
    assert np.array_equal(normalised_adjacency(empty), np.eye(len(WORDS)))


def test_the_k_nearest_leave_nobody_alone() -> None:
    rare = [*CAPTIONS, "snow unseen", *["man snow"] * 3]
    assert len(summarise(build_concept_graph(rare, WORDS)).isolated) > 0
    assert summarise(build_concept_graph(rare, WORDS, mode="knn", k=2)).isolated == ()
    assert np.count_nonzero(weights(rare, WORDS, mode="knn", k=2), axis=0).max() == 2


def test_relations_add_up_by_gain() -> None:
    graph = read_conceptnet(io.BytesIO(assertions("a IsA b 1.0, b RelatedTo a 2.0, a Synonym c 1.0")), ["a", "b", "c"])
    received = weights([], ["a", "b", "c"], source="conceptnet", conceptnet=graph)[:, 0]
    of_b, of_c = math.log(2) + 0.5 * math.log(3), 0.7 * math.log(2)
    np.testing.assert_allclose(received, 0.25 * np.array([0, of_b, of_c]) / (of_b + of_c))


def test_the_graph_explains_itself(known) -> None:
    graph = build_concept_graph(CAPTIONS, WORDS, source="both", conceptnet=known)
    names = [name for name, _, _ in strongest(graph, "sit")]
    assert names[0] == "man"
    assert strongest(graph, "sit", 1) == [("man", graph["man"]["sit"]["weight"], "CapableOf")]
    # Antonym says nothing of belonging together
    assert graph["dog"]["man"]["relations"] == ""
    summary = summarise(graph)
    assert summary.isolated == ("unseen",) and summary.concepts == 9
    assert summary.coverage == pytest.approx(8 / 9)
    with pytest.raises(ItmError, match='unknown concept "sitt"; did you mean sit'):
        strongest(graph, "sitt")


def test_conceptnet_may_be_a_file(tmp_path, known) -> None:
    path = tmp_path / "assertions.csv"
    path.write_bytes(assertions(EDGES))
    options = {"source": "conceptnet"}
    assert np.array_equal(
        weights(CAPTIONS, WORDS, conceptnet=path, **options), weights(CAPTIONS, WORDS, conceptnet=known, **options)
    )


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (WORDS, {"source": "wordnet"}, 'unknown source "wordnet"'),
        (WORDS, {"mode": "kn"}, 'unknown mode "kn"; did you mean knn'),
        (WORDS, {"source": "both"}, "source both needs ConceptNet"),
        (WORDS, {"k": 0}, "k is 0"),
        ([], {}, "the vocabulary is empty"),
        (["dog", "cat", "dog"], {}, 'holds "dog" 2 times'),
    ],
)
def test_bad_input_is_named(words, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        build_concept_graph(CAPTIONS, words, **options)
