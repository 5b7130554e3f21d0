"""How CODER's concept branch comes about: from the training captions, from a folder, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.concepts import Concepts, load_concepts, make_concepts, normalised_adjacency
from lavis_itm_plugins.data.lookup import training_captions
from lavis_itm_plugins.data.scenes.store import default_cache_root
from lavis_itm_plugins.distributed import barrier, rank
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.coder_branches import ConceptBranch
from lavis_itm_plugins.methods.coder_config import ConceptConfig


@torch.no_grad()
def embed_dim(matcher: Any) -> int:
    """Size of a matcher's vectors; raises ItmError for one that has no single vector for a caption."""
    training = matcher.training
    pooled = matcher.eval().encode_captions(["a"]).pooled
    matcher.train(training)
    if pooled is None:
        raise ItmError(
            f"itm_coder needs a matcher with one vector for an image and a caption; {matcher.arch} has none, "
            "choose itm_vse"
        )
    return int(pooled.shape[1])


def prepare_concepts(config: ConceptConfig) -> Concepts:
    """The concepts of a run that starts: a built folder, or the training captions of its data sets."""
    if config.graph:
        return load_concepts(config.graph)
    captions = training_captions()
    cache = default_cache_root() / "concepts"
    if rank() == 0:
        concepts = make_concepts(captions, config, cache)
    barrier()
    # the other ranks find in the cache what the first one read
    return concepts if rank() == 0 else make_concepts(captions, config, cache)


def describe(concepts: Concepts) -> dict[str, Any]:
    """What a checkpoint says of the concepts, so that it is evaluated without the files they came from."""
    return {
        "words": concepts.words,
        "source": concepts.graph.graph["source"],
        "shared_alike": concepts.shared_alike,
        "word_dim": None if concepts.vectors is None else concepts.vectors.shape[1],
    }


def make_branch(config: ConceptConfig, dim: int, concepts: Concepts | Mapping[str, Any]) -> ConceptBranch:
    """The branch over prepared concepts, or over what a checkpoint describes, whose values are then loaded."""
    words: Tensor | None = None
    if isinstance(concepts, Concepts):
        precision = torch.get_default_dtype()
        adjacency = torch.from_numpy(normalised_adjacency(concepts.graph)).to(precision)
        words = None if concepts.vectors is None else torch.from_numpy(concepts.vectors).to(precision)
    else:
        adjacency = torch.eye(len(concepts["words"]))
        words = torch.zeros(len(adjacency), concepts["word_dim"]) if concepts["word_dim"] else None
    shape = {"hidden": config.hidden, "word_dim": config.word_dim}
    return ConceptBranch(adjacency, words, dim, **shape, query=config.query, sharpness=config.sharpness)


def check_same_concepts(mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> None:
    """Raise ItmError when a checkpoint is over other words: the rows of the graph would mean other ones."""
    if mine and theirs and mine["words"] != theirs["words"]:
        raise ItmError(
            f"the checkpoint has other concepts ({len(theirs['words'])}) than this model ({len(mine['words'])}); "
            "use the captions and concept settings it was trained with"
        )
