"""What is scored after training: both branches of the chosen tower, whose concepts also explain a vector."""

from __future__ import annotations

import pytest
import torch
from methods.coder_stubs import OFF, batch_of, make_coder

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.candidates import model_identity
from lavis_itm_plugins.methods.coder_branches import FusedMatcher


def test_fused_scores_are_the_weighted_sum_of_the_branches(monkeypatch) -> None:
    coder = make_coder(monkeypatch, labels=False, dictionary={"size": 2})
    batch = batch_of([0, 1, 2, 3])
    vectors = coder.vectors(coder.encoded(batch), coder.concept)
    for weight in (0.0, 0.3, 1.0):
        coder.fusion_weight.fill_(weight)
        matcher = coder.evaluated()
        images, captions = matcher.encode_images(batch), matcher.encode_captions(batch["text_input"])
        assert isinstance(images, Encoded) and images.pooled.shape == (4, 16)
        parts = [vectors[name]["image"] @ vectors[name]["caption"].T for name in ("instance", "concept")]
        expected = float(coder.fusion_weight) * parts[0] + (1 - float(coder.fusion_weight)) * parts[1]
        torch.testing.assert_close(matcher.score(images, captions), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(matcher.score_pairs(images, captions), expected.diagonal(), rtol=1e-10, atol=1e-12)


def test_the_scored_tower(monkeypatch) -> None:
    for scored, towers in (("online", "online"), ("momentum", "momentum"), ("best", "online")):
        coder = make_coder(monkeypatch, scored=scored, dictionary={"size": 2}, fusion_weight=0.5)
        assert coder.evaluated().matcher is coder.tower(towers)[0] and coder.evaluated().weight == 0.5
    coder.key_tower_scored.fill_(True)
    matcher = coder.evaluated()
    assert matcher.matcher is coder.keys.matcher.module and matcher.branch is coder.keys.concept.module
    # the key tower never leaves evaluation mode, as an evaluation puts its matcher back
    assert not matcher.training
    off = make_coder(monkeypatch, **OFF)
    with pytest.raises(ItmError, match="has no key tower"):
        off.tower("momentum")


def test_top_concepts_explain_a_vector(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 2})
    batch = batch_of([0, 1])
    vectors = coder.encoded(batch).images.pooled
    shares = coder.concept.attention(vectors, "image", coder.concept.concepts())
    for row, found in enumerate(coder.top_concepts(vectors, "image", 9)):
        assert [share for _, share in found] == sorted(shares[row].tolist(), reverse=True)
        assert sorted(word for word, _ in found) == [f"c{number}" for number in range(9)]
    with pytest.raises(ItmError, match="no concept branch"):
        make_coder(monkeypatch, **OFF).top_concepts(vectors, "image")


def test_the_scored_tower_explains(monkeypatch) -> None:
    coder = make_coder(monkeypatch, scored="momentum", dictionary={"size": 2})
    vectors = coder.encoded(batch_of([0, 1])).images.pooled
    before = coder.top_concepts(vectors, "image")
    coder.concept.first.data.neg_()
    assert coder.top_concepts(vectors, "image") == before


def test_what_is_deployed_says_what_it_is(monkeypatch) -> None:
    """Mining, encoding and re-ranking ask a matcher for these."""
    coder = make_coder(monkeypatch, fusion_weight=0.5)
    coder.matcher.reranks, coder.matcher.tokens = True, lambda captions: [len(caption) for caption in captions]
    fused = coder.evaluated()
    assert fused.reranks and fused.tokens(["ab"]) == [2]
    identity = model_identity(fused)
    assert identity["arch"] == "itm_coder" and identity != model_identity(FusedMatcher(coder.matcher, coder.concept, 1))
