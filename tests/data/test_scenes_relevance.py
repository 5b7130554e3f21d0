"""The relevance of a generated picture to a caption: as worked out by hand, and 1 for every caption of its own."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from data.small_scenes import seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.scenes import Claims, Mention, Scene, Thing, relevance, relevance_matrix
from lavis_itm_plugins.data.scenes.captions import write_captions
from lavis_itm_plugins.data.scenes.claims import Style, choose_claims
from lavis_itm_plugins.data.scenes.world import sample_scene

CAT = Thing("cat", "red", "small", "plain", column=0, row=0)
STAR = Thing("star", "blue", "large", "striped", column=1, row=1)
SCENE = Scene("night", (CAT, STAR))
TWO_CATS = Scene("night", (CAT, Thing("cat", "red", "small", "plain", column=1, row=0), STAR))


@pytest.mark.parametrize(
    ("scene", "claims", "expected"),
    [
        (SCENE, Claims((Mention("cat"),)), 1),
        (SCENE, Claims((Mention("car"),)), 0),
        (SCENE, Claims((Mention("cat", "red", "small", "plain"), Mention("star", "blue", "large", "striped"))), 1),
        (SCENE, Claims((Mention("cat", "blue"), Mention("star", "red"))), 4 / 6),
        (SCENE, Claims((Mention("cat", "red", "large", "dotted"),)), 3 / 5),
        (SCENE, Claims((Mention(colour="red"),)), 1),
        (SCENE, Claims((Mention("star"), Mention("cat"), Mention("cat"))), 4 / 6),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((0, "left", 1), (0, "above", 1))), 1),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((1, "right", 0), (1, "below", 0))), 1),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((0, "right", 1),)), 4 / 5),
        (SCENE, Claims((Mention("cat"),), background="night"), 1),
        (SCENE, Claims((Mention("cat"),), background="day"), 2 / 3),
        (SCENE, Claims((Mention("cat"),), complete=True), 2 / 3),
        (SCENE, Claims((Mention("cat"), Mention("star")), complete=True), 1),
        (SCENE, Claims((Mention("cat", count=2),)), 2 / 5),
        (TWO_CATS, Claims((Mention("cat", count=2),)), 1),
        (TWO_CATS, Claims((Mention("cat", "red", count=2),), complete=True), 7 / 8),
        (TWO_CATS, Claims((Mention("cat"),)), 1),
        (TWO_CATS, Claims((Mention("cat"), Mention("star")), ((0, "left", 1),)), 1),
        (TWO_CATS, Claims((Mention("cat", count=2), Mention("star")), ((0, "left", 1),)), 8 / 9),
        (TWO_CATS, Claims((Mention("cat", count=2), Mention("star")), ((0, "above", 1),)), 1),
        (TWO_CATS, Claims((Mention(size="small", count=3),)), 2 / 4),
    ],
)
def test_relevance_by_hand(scene: Scene, claims: Claims, expected: float) -> None:
    assert relevance(scene, claims) == pytest.approx(expected, abs=1e-12)
    assert relevance_matrix([scene], [claims])[0, 0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_fast_relevance_equals_the_slow_one(seed: int, n_images: int, n_authors: int) -> None:
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(n_images)]
    authors = [*scenes, *(sample_scene(rng) for _ in range(n_authors))]
    claims = [claim for scene in authors for _, claim in write_captions(scene, rng)]
    slow = np.array([[relevance(scene, claim) for claim in claims] for scene in scenes])
    fast = relevance_matrix(scenes, claims)
    assert fast.dtype == np.float32 and fast.shape == (n_images, len(claims))
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    np.testing.assert_array_equal(fast == 1, slow == 1)
    assert fast.min() >= 0 and fast.max() <= 1


def test_relevance_of_nothing_is_empty() -> None:
    assert relevance_matrix([], [Claims((Mention("cat"),))]).shape == (0, 1)
    assert relevance_matrix([SCENE], []).shape == (1, 0)


def test_captions_are_true_of_their_pictures_and_of_some_others() -> None:
    rng = random.Random(5)
    scenes = [sample_scene(rng) for _ in range(300)]
    claims = [claim for scene in scenes for _, claim in write_captions(scene, rng)]
    matrix = relevance_matrix(scenes, claims)
    assert (matrix[np.arange(1500) // 5, np.arange(1500)] == 1).all()
    fitting = (matrix == 1).sum(axis=0)
    assert 0.2 < np.mean(fitting > 1) < 0.8 and fitting.mean() < 10


def test_nothing_else_is_said_only_where_all_is_mentioned() -> None:
    style = Style(groups=1, colour=1, size=1, texture=1, relation=0, background=1, complete=1)
    assert not choose_claims(SCENE, style, random.Random(0)).complete
    assert choose_claims(Scene("night", (CAT,)), style, random.Random(0)).complete


@given(seeds)
def test_graphs_and_claims_survive_json(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
    for _, claims in write_captions(scene, rng):
        assert Claims.from_json(json.loads(json.dumps(claims.to_json()))) == claims
