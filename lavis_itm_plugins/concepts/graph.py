"""The concept graph: which concepts tell something of which, from captions (CVSE) and from ConceptNet.

Wang et al., "Consensus-Aware Visual-Semantic Embedding" (CVSE), ECCV 2020; github.com/BruceW91/CVSE. An edge i -> j of
weight A_ij lets concept j receive from concept i.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.concepts.conceptnet import GAINS, read_conceptnet
from lavis_itm_plugins.concepts.vocabulary import ConceptFinder
from lavis_itm_plugins.errors import ItmError, unknown_name

SOURCES = ("cooccurrence", "conceptnet", "both")
MODES = ("cvse", "knn")
BASE, OFFSET, THRESHOLD = 5.0, 0.02, 0.3  # s, u and the smallest B that CVSE keeps
SHARE = 0.25  # what a concept receives from all others together, beside 1 from itself

_Matrix = npt.NDArray[np.float64]


def build_concept_graph(
    captions: Iterable[str | Iterable[str]],
    vocabulary: Sequence[str],
    *,
    source: str = "cooccurrence",
    conceptnet: str | Path | nx.MultiDiGraph[str] | None = None,
    mode: str = "cvse",
    k: int = 8,
) -> nx.DiGraph[str]:
    """The weighted graph over a vocabulary from captions, from ConceptNet, or the mean of both.

    With n_i captions that name concept i, E_ij that name both, and P_ij = E_ij / n_i:
      cvse: edges where B_ij = 5^(P_ij - 0.02) - 5^(-0.02) is at least 0.3, all of one weight
      knn:  the k largest B_ij of each receiving concept j, weighted by B, so that hardly a concept is isolated
    ConceptNet's weight of a pair is the sum of gain x ln(1 + weight) over its assertions in both directions; with "knn"
    only the k largest of each concept stay. Either way, what a concept receives sums to 0.25.

    Args:
        captions: of the training split, as texts or as their words.
        vocabulary: the concepts, in the order of the nodes.
        source: "cooccurrence" | "conceptnet" | "both".
        conceptnet: what ``read_conceptnet`` gave, or its file; for the sources that need it.
        mode: "cvse" | "knn".
        k: at least 1, for "knn".

    Returns:
        Nodes are the concepts with `count`, the captions that name them; edges have `weight`, and `relations`,
        ConceptNet's names for the pair, joined by commas.

    Raises:
        ItmError: unknown option, a concept given twice, or ConceptNet missing.

    >>> graph = build_concept_graph(["a man and a dog", "a dog on a beach"], ["man", "dog", "beach", "cat"])
    >>> [(i, j, round(weight, 3)) for i, j, weight in graph.edges(data="weight")]
    [('man', 'dog', 0.125), ('dog', 'man', 0.25), ('dog', 'beach', 0.25), ('beach', 'dog', 0.125)]
    """
    _check(vocabulary, source, conceptnet, mode, k)
    together = _cooccurrences(captions, vocabulary)
    counts = together.diagonal().copy()
    parts = []
    if source != "conceptnet":
        parts.append(_received(_surprise(together), THRESHOLD if mode == "cvse" else None, k))
    known: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    if source != "cooccurrence" and conceptnet is not None:
        known = conceptnet if isinstance(conceptnet, nx.MultiDiGraph) else read_conceptnet(conceptnet, vocabulary)
        parts.append(_received(_conceptnet_weights(known, vocabulary), None, k if mode == "knn" else len(vocabulary)))
    graph: nx.DiGraph[str] = nx.DiGraph(source=source, mode=mode, k=k)
    graph.add_nodes_from((word, {"count": int(count)}) for word, count in zip(vocabulary, counts, strict=True))
    adjacency = np.mean(parts, axis=0)
    for i, j in zip(*np.nonzero(adjacency), strict=True):
        start, end = vocabulary[i], vocabulary[j]
        graph.add_edge(start, end, weight=float(adjacency[i, j]), relations=_relations(known, start, end))
    return graph


def normalised_adjacency(graph: nx.DiGraph[str]) -> _Matrix:
    """What the graph convolution multiplies with, (N, N): D^-1/2 (A + I)^T D^-1/2, D the row sums of A + I.

    Row j holds what concept j receives; without edges it is the identity. Float64.

    >>> normalised_adjacency(nx.DiGraph([("a", "b", {"weight": 1.0})])).round(3).tolist()
    [[0.5, 0.0], [0.707, 1.0]]
    """
    adjacency = nx.to_numpy_array(graph, weight="weight") + np.eye(len(graph))
    scale = adjacency.sum(axis=1) ** -0.5
    return np.asarray(scale[:, None] * adjacency.T * scale[None, :])


@dataclass(frozen=True)
class GraphSummary:
    """What to look at before using a graph: how large it is, who receives nothing, and how many ConceptNet knows."""

    concepts: int
    edges: int
    isolated: tuple[str, ...]
    covered: int

    @property
    def coverage(self) -> float:
        """Share of the concepts that have an edge of ConceptNet."""
        return self.covered / max(self.concepts, 1)


def summarise(graph: nx.DiGraph[str]) -> GraphSummary:
    """Sizes, isolated concepts and coverage of a concept graph.

    >>> summarise(nx.DiGraph([("a", "b", {"weight": 1.0, "relations": "IsA"})]))
    GraphSummary(concepts=2, edges=1, isolated=('a',), covered=2)
    """
    isolated = tuple(node for node in graph if not graph.in_degree(node))
    known = {node for *pair, names in graph.edges(data="relations") if names for node in pair}
    return GraphSummary(len(graph), graph.number_of_edges(), isolated, len(known))


def strongest(graph: nx.DiGraph[str], concept: str, count: int = 10) -> list[tuple[str, float, str]]:
    """The concepts that one receives most from: name, weight, ConceptNet's relations.

    Raises ItmError, with the nearest names, for a concept that is not in the graph.

    >>> strongest(nx.DiGraph([("a", "b", {"weight": 1.0, "relations": ""})]), "b")
    [('a', 1.0, '')]
    """
    if concept not in graph:
        raise unknown_name("concept", concept, graph)
    edges = [(start, about["weight"], about["relations"]) for start, _, about in graph.in_edges(concept, data=True)]
    return sorted(edges, key=lambda edge: (-edge[1], edge[0]))[:count]


def _check(
    vocabulary: Sequence[str], source: str, conceptnet: str | Path | nx.MultiDiGraph[str] | None, mode: str, k: int
) -> None:
    for name, value, known in (("source", source, SOURCES), ("mode", mode, MODES)):
        if value not in known:
            raise unknown_name(name, str(value), known)
    if source != "cooccurrence" and conceptnet is None:
        raise ItmError(f"source {source} needs ConceptNet; give its assertions file, or choose source: cooccurrence")
    if k < 1:
        raise ItmError(f"k is {k}; give at least 1 neighbour")
    if not vocabulary:
        raise ItmError("the vocabulary is empty; give at least one concept")
    word, times = Counter(vocabulary).most_common(1)[0]
    if times > 1:
        raise ItmError(f'the vocabulary holds "{word}" {times} times; give each concept once')


def _cooccurrences(captions: Iterable[str | Iterable[str]], vocabulary: Sequence[str]) -> _Matrix:
    """Captions that name concepts i and j, (N, N); on the diagonal those that name one."""
    find = ConceptFinder(vocabulary)
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    for caption in captions:
        rows = list(find(caption))
        counts[np.ix_(rows, rows)] += 1
    return counts


def _surprise(together: _Matrix) -> _Matrix:
    """B_ij of CVSE, 0 on the diagonal and for concepts never seen."""
    conditional = together / np.maximum(together.diagonal(), 1)[:, None]
    # as the difference of two powers, concepts that never meet would get an ulp instead of 0
    scaled = BASE**-OFFSET * np.expm1(math.log(BASE) * conditional)
    np.fill_diagonal(scaled, 0)
    return np.asarray(scaled)


def _conceptnet_weights(graph: nx.MultiDiGraph[str], vocabulary: Sequence[str]) -> _Matrix:
    """Sum of gain x ln(1 + weight) over all assertions between two concepts, symmetric."""
    rows = {word: row for row, word in enumerate(vocabulary)}
    weights = np.zeros((len(rows), len(rows)))
    for start, end, relation, weight in graph.edges(keys=True, data="weight"):
        if start in rows and end in rows and start != end:
            weights[rows[start], rows[end]] += GAINS.get(relation, 0.0) * math.log1p(weight)
    return weights + weights.T


def _received(weights: _Matrix, threshold: float | None, k: int) -> _Matrix:
    """A: what each concept (column) receives, scaled to 0.25; all above a threshold alike, or the k largest."""
    if threshold is not None:
        kept = (weights >= threshold).astype(np.float64)
    else:
        # equal weights: the first rows of the vocabulary, on every machine
        order = np.argsort(-weights, axis=0, kind="stable")[:k]
        kept = np.zeros_like(weights)
        np.put_along_axis(kept, order, np.take_along_axis(weights, order, axis=0), axis=0)
    total = kept.sum(axis=0)
    return np.asarray(SHARE * kept / np.where(total > 0, total, 1))


def _relations(graph: nx.MultiDiGraph[str], start: str, end: str) -> str:
    """ConceptNet's names for a pair in either direction, those that count."""
    pairs = ((start, end), (end, start))
    names = {name for pair in pairs for name in (graph.get_edge_data(*pair) or {}) if GAINS.get(name)}
    return ",".join(sorted(names))
