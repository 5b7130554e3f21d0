"""Concepts of captions: a vocabulary, a graph over it from captions and ConceptNet, and vectors of words."""

from lavis_itm_plugins.concepts.build import (
    ConceptRecipe,
    Concepts,
    load_concepts,
    make_concepts,
    save_concepts,
)
from lavis_itm_plugins.concepts.cache import cached_conceptnet, cached_vectors
from lavis_itm_plugins.concepts.conceptnet import read_conceptnet
from lavis_itm_plugins.concepts.graph import build_concept_graph, normalised_adjacency, strongest, summarise
from lavis_itm_plugins.concepts.vectors import concept_vectors, read_word_vectors
from lavis_itm_plugins.concepts.vocabulary import ConceptFinder, concept_vocabulary, load_tagger

__all__ = [
    "ConceptFinder",
    "ConceptRecipe",
    "Concepts",
    "build_concept_graph",
    "cached_conceptnet",
    "cached_vectors",
    "concept_vectors",
    "concept_vocabulary",
    "load_concepts",
    "load_tagger",
    "make_concepts",
    "normalised_adjacency",
    "read_conceptnet",
    "read_word_vectors",
    "save_concepts",
    "strongest",
    "summarise",
]
