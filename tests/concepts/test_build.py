"""From captions to concepts, and a folder of them."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from concepts.conceptnet_lines import assertions

from lavis_itm_plugins.concepts import ConceptRecipe, build, load_concepts, make_concepts, save_concepts, summarise
from lavis_itm_plugins.concepts.cache import ATTRIBUTION_FILE
from lavis_itm_plugins.data.scenes import SceneConfig
from lavis_itm_plugins.errors import ItmError

CAPTIONS = ["a man and a dog on a beach", "the dog runs on the beach", "a man sits", "a red ball and a dog"]


def equal(one, other) -> bool:
    graphs = [(dict(c.graph.nodes(data=True)), list(c.graph.edges(data=True)), c.graph.graph) for c in (one, other)]
    return graphs[0] == graphs[1] and one.shared_alike == other.shared_alike


def test_captions_alone(tmp_path) -> None:
    made = make_concepts(CAPTIONS, ConceptRecipe(min_count=1), tmp_path / "cache")
    assert {"dog", "beach", "run", "red"} <= set(made.words) and made.vectors is None and not made.shared_alike
    assert made.graph.nodes["dog"] == {"count": 3, "kind": "object"}
    assert not (tmp_path / "cache").exists()
    save_concepts(made, tmp_path / "out")
    assert equal(made, load_concepts(tmp_path / "out"))
    assert not (tmp_path / "out" / ATTRIBUTION_FILE).exists()


def test_with_conceptnet_and_vectors(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "assertions.csv").write_bytes(assertions("dog CapableOf run 2.0"))
    (tmp_path / "glove.txt").write_text("dog 1 0\nred 0 1\n")
    recipe = ConceptRecipe(
        min_count=1, conceptnet=str(tmp_path / "assertions.csv"), vectors=str(tmp_path / "glove.txt"), mode="knn"
    )
    made = make_concepts(CAPTIONS, recipe, tmp_path / "cache")
    assert made.graph.graph["source"] == "both" and made.graph["dog"]["run"]["relations"] == "CapableOf"
    assert made.vectors.shape == (len(made.words), 2) and made.shared_alike
    assert "word vectors: 2 of" in caplog.text and "ConceptNet knows only" in caplog.text
    save_concepts(made, tmp_path / "out")
    loaded = load_concepts(tmp_path / "out")
    assert equal(made, loaded) and np.array_equal(made.vectors, loaded.vectors)
    # the licence goes where what is derived goes
    assert (tmp_path / "out" / ATTRIBUTION_FILE).exists() and (tmp_path / "cache" / ATTRIBUTION_FILE).exists()


def test_the_shipped_graph_knows_the_scenes(tmp_path) -> None:
    from lavis_itm_plugins.data.scenes.captions import NOUNS, SIZES
    from lavis_itm_plugins.data.scenes.world import COLOURS

    assert SceneConfig().train
    nouns = [form[0] for forms in NOUNS.values() for form in forms if " " not in form[0]]
    words = [*nouns, *COLOURS, *SIZES["small"], *SIZES["large"]]
    captions = [f"a {word}" for word in words]
    made = make_concepts(captions, ConceptRecipe(min_count=1, conceptnet="scenes"), tmp_path)
    assert summarise(made.graph).coverage > 0.95
    # it is ours: no licence of ConceptNet's
    assert not made.shared_alike and not (tmp_path / ATTRIBUTION_FILE).exists()


@pytest.mark.parametrize(
    ("name", "row", "shared"), [("glove.txt", "dog", 0), ("numberbatch-en.txt", "dog", 1), ("x.txt", "/c/en/dog", 1)]
)
def test_only_numberbatch_has_the_licence_of_conceptnet(tmp_path, name, row, shared) -> None:
    (tmp_path / name).write_text(f"{row} 1 0 2\n")
    recipe = ConceptRecipe(min_count=1, vectors=str(tmp_path / name))
    assert make_concepts(CAPTIONS, recipe, tmp_path / "cache").shared_alike == bool(shared)
    assert (tmp_path / "cache" / ATTRIBUTION_FILE).exists() == bool(shared)
    for file in (tmp_path / "cache").glob("*.txt"):
        file.unlink()
    # also when the vectors come from the cache
    make_concepts(CAPTIONS, recipe, tmp_path / "cache")
    assert (tmp_path / "cache" / ATTRIBUTION_FILE).exists() == bool(shared)


def test_a_tagger_s_base_forms_reach_the_graph(tmp_path, monkeypatch) -> None:
    """ "saw" is see to a tagger, and a tool to the rules."""
    tags = {"dogs": ("dog", "NOUN"), "saw": ("see", "VERB"), "birds": ("bird", "NOUN")}

    class Tagger:
        def pipe(self, captions, batch_size):
            for caption in captions:
                read = [tags.get(word, (word, "X")) for word in caption.split()]
                yield [SimpleNamespace(lemma_=lemma, pos_=tag) for lemma, tag in read]

    monkeypatch.setattr(build, "load_tagger", lambda _name: Tagger())
    made = make_concepts(["dogs saw birds", "dogs saw"], ConceptRecipe(min_count=1, tagger="any"), tmp_path)
    assert made.graph.nodes["see"]["count"] == 2 and made.graph.has_edge("dog", "see")


def test_what_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(ItmError, match="source both needs ConceptNet"):
        make_concepts(CAPTIONS, ConceptRecipe(min_count=1, source="both"), tmp_path)
    with pytest.raises(ItmError, match="spaCy's no_such_pipeline is not installed"):
        make_concepts(CAPTIONS, ConceptRecipe(min_count=1, tagger="no_such_pipeline"), tmp_path)
    with pytest.raises(ItmError, match=r"holds no concepts.json; make it with: lavis-itm concepts build"):
        load_concepts(tmp_path)
    (tmp_path / "concepts.json").write_text('{"nodes": 3}')
    with pytest.raises(ItmError, match="is damaged"):
        load_concepts(tmp_path)
