"""From training captions to what the concept branch reads: words, their graph, their vectors; and files of it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.concepts.cache import cached_conceptnet, cached_vectors, write_attribution
from lavis_itm_plugins.concepts.graph import MODES, SOURCES, build_concept_graph, summarise
from lavis_itm_plugins.concepts.vectors import concept_vectors, is_numberbatch
from lavis_itm_plugins.concepts.vocabulary import concept_vocabulary, load_tagger, tagged_words
from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

SHIPPED = {"scenes": Path(__file__).with_name("scenes.csv")}  # assertions of our own, in ConceptNet's form
LEAST_COVERAGE = 0.8
GRAPH_FILE, VECTORS_FILE = "concepts.json", "vectors.npy"


@dataclass(frozen=True)
class ConceptRecipe:
    """How a concept graph is made from captions."""

    size: int = setting(300, low=1, help="concepts at most: things, properties and motions as 7:2:1")
    min_count: int = setting(5, low=1, help="captions in which a concept must occur")
    source: str | None = setting(None, choices=SOURCES, help="both with conceptnet, else cooccurrence")
    conceptnet: str | None = setting(None, help="ConceptNet's assertions (.csv, .csv.gz), or scenes: our own")
    mode: str = setting("cvse", choices=MODES, help="knn: no concept is isolated")
    k: int = setting(8, low=1, help="knn: neighbours of a concept")
    vectors: str | None = setting(None, help="word vectors as text (Numberbatch, GloVe); learned when not given")
    tagger: str | None = setting(None, help="a spaCy pipeline, such as en_core_web_sm; word lists when not given")


@dataclass(frozen=True)
class Concepts:
    """A concept graph whose nodes carry `kind` and `count`, and the concepts' vectors (N, w), None to learn them.

    `shared_alike` says whether ConceptNet's licence binds what is derived from it.
    """

    graph: nx.DiGraph[str]
    vectors: npt.NDArray[np.float32] | None = None
    shared_alike: bool = False

    @property
    def words(self) -> list[str]:
        """The concepts, in the order of the nodes."""
        return list(self.graph)


def make_concepts(captions: Sequence[str], recipe: ConceptRecipe, cache: Path) -> Concepts:
    """Choose the concepts, read what is known of them (kept below `cache`), and say what came of it in the log.

    Raises ItmError when a file cannot be read, or ConceptNet is asked for and not given.
    """
    tagger = load_tagger(recipe.tagger) if recipe.tagger else None
    if recipe.tagger and tagger is None:
        raise ItmError(
            f"spaCy's {recipe.tagger} is not installed; run: python -m spacy download {recipe.tagger}, "
            "or leave tagger out"
        )
    kinds = concept_vocabulary(captions, recipe.size, min_count=recipe.min_count, tagger=tagger)
    source = recipe.source or ("both" if recipe.conceptnet else "cooccurrence")
    known, shared_alike = None, False
    if recipe.conceptnet and source != "cooccurrence":
        # over all words of the captions: another number of concepts then needs no other reading
        every_word = concept_vocabulary(captions, sys.maxsize, min_count=recipe.min_count, tagger=tagger)
        shared_alike = recipe.conceptnet not in SHIPPED
        path = SHIPPED.get(recipe.conceptnet, recipe.conceptnet)
        known = cached_conceptnet(path, list(every_word), cache, shared_alike=shared_alike)
        report_reading(known)
    # as the tagger read them: no rule knows that "saw" may be see
    read = captions if tagger is None else tagged_words(captions, tagger)
    graph = build_concept_graph(read, list(kinds), source=source, conceptnet=known, mode=recipe.mode, k=recipe.k)
    nx.set_node_attributes(graph, kinds, "kind")
    vectors = None
    if recipe.vectors:
        found = cached_vectors(recipe.vectors, list(kinds), cache)
        log.info("word vectors: %d of %d concepts have one", len(found), len(kinds))
        vectors = concept_vectors(graph, found)
        shared_alike = shared_alike or is_numberbatch(recipe.vectors)
    report(graph)
    return Concepts(graph, vectors, shared_alike)


def report_reading(known: nx.MultiDiGraph[str]) -> None:
    """One line of what was found in ConceptNet for the captions' words."""
    covered = sum(1 for _, degree in known.degree() if degree)
    log.info(
        "ConceptNet: %d lines, %d of them broken; %d edges between %d of the captions' %d words (%.0f %%)",
        *(known.graph["lines"], known.graph["bad_lines"], known.number_of_edges(), covered, len(known)),
        100 * covered / len(known),
    )


def report(graph: nx.DiGraph[str]) -> None:
    """One line of what a graph is like, and a warning when ConceptNet knows few of its concepts."""
    summary = summarise(graph)
    log.info(
        "concept graph (%s, %s): %d concepts, %d edges, %d receive nothing, ConceptNet knows %.0f %%",
        *(graph.graph["source"], graph.graph["mode"], summary.concepts, summary.edges, len(summary.isolated)),
        100 * summary.coverage,
    )
    if graph.graph["source"] != "cooccurrence" and summary.coverage < LEAST_COVERAGE:
        log.warning("ConceptNet knows only %.0f %% of the concepts; is it the right file?", 100 * summary.coverage)


def save_concepts(concepts: Concepts, folder: str | Path) -> None:
    """Write the graph, the vectors and, where it applies, ConceptNet's licence into a folder."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if concepts.shared_alike:
            write_attribution(target)
        graph = concepts.graph
        parts = {"graph": graph.graph, "nodes": list(graph.nodes(data=True)), "edges": list(graph.edges(data=True))}
        content = {"shared_alike": concepts.shared_alike, **parts}
        (target / GRAPH_FILE).write_text(json.dumps(content), encoding="utf-8")
        if concepts.vectors is not None:
            np.save(target / VECTORS_FILE, concepts.vectors)
    except OSError as error:
        raise ItmError(f"cannot write {target}: {error.strerror or error}; choose another folder") from None


def load_concepts(folder: str | Path) -> Concepts:
    """What ``save_concepts`` wrote; raises ItmError when it is missing or damaged."""
    source = user_path(folder)
    try:
        content = json.loads((source / GRAPH_FILE).read_text(encoding="utf-8"))
        vectors = np.load(source / VECTORS_FILE) if (source / VECTORS_FILE).exists() else None
        graph: nx.DiGraph[str] = nx.DiGraph(**content["graph"])
        graph.add_nodes_from((word, about) for word, about in content["nodes"])
        graph.add_edges_from((start, end, about) for start, end, about in content["edges"])
        return Concepts(graph, vectors, bool(content["shared_alike"]))
    except FileNotFoundError:
        raise ItmError(f"{source} holds no {GRAPH_FILE}; make it with: lavis-itm concepts build") from None
    except (OSError, ValueError, KeyError, TypeError, nx.NetworkXError) as error:
        raise ItmError(f"{source} is damaged ({type(error).__name__}); make it again") from None
