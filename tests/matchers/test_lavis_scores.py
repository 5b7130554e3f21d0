"""The scores of LAVIS's networks are those of LAVIS's own code, re-ranked or not."""

from __future__ import annotations

from types import SimpleNamespace

import lavis_tiny
import numpy as np
import pytest
import torch
from lavis.models.albef_models import compute_sim_matrix as albef_matrix
from lavis.models.blip2_models.blip2 import compute_sim_matrix as blip2_matrix
from matchers.lavis_batches import CAPTIONS, OWNERS
from torch.nn.functional import normalize

from lavis_itm_plugins.evaluation import retrieval_metrics
from lavis_itm_plugins.matchers import lavis_rerank
from lavis_itm_plugins.matchers.base import Matcher


class Loader(list):
    """A split of five pictures in batches of two, as LAVIS's loaders give it."""

    def __init__(self):
        torch.manual_seed(5)
        pictures = torch.rand(5, 3, lavis_tiny.SIZE, lavis_tiny.SIZE)
        super().__init__(
            {"image": pictures[i : i + 2], "index": torch.arange(i, min(i + 2, 5))} for i in range(0, 5, 2)
        )
        self.dataset = SimpleNamespace(text=CAPTIONS, image=list(range(5)), txt2img=dict(enumerate(OWNERS)))


class Items(Loader):
    """Its length is that of its data."""

    def __init__(self):
        super().__init__()

        class Data(SimpleNamespace):
            def __len__(self):
                return 5

        self.dataset = Data(**vars(self.dataset))


def test_clip_scores_are_those_of_lavis(make):
    model, loader = make("clip").eval(), Items()
    with torch.no_grad():
        # LAVIS reads 77 tokens whatever the network has
        model.network.tokenizer = lambda texts: model.tokens(texts).cpu()
        theirs = model.network.compute_sim_matrix(loader)
    for ours, other in zip(model.compute_sim_matrix(loader), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "stock"), [("blip", albef_matrix), ("albef", albef_matrix), ("blip2", blip2_matrix)]
)
@pytest.mark.parametrize("k_test", [5, 2])
def test_reranked_scores_are_those_of_lavis(network, stock, k_test, make, monkeypatch):
    """With all pairs, and with fewer; LAVIS fails for a `k_test` above the images or captions, ours is clamped."""
    monkeypatch.setattr(lavis_rerank, "PAIRS_AT_ONCE", 4)
    model, loader = make(network).eval(), Items()
    with torch.no_grad():
        theirs = stock(model=model.network, data_loader=loader, k_test=k_test)
        asked = {"k_test": 128 if k_test == 5 else k_test}
        ours = model.compute_sim_matrix(loader, asked)
    # with k_test = 5, LAVIS leaves captions 6 and 7 of an image out; ours takes them all
    for mine, other, clamp in zip(ours, theirs, (7, 5), strict=True):
        seen = other > -100
        assert (seen.sum(axis=1) == k_test).all()
        np.testing.assert_allclose(mine[seen], other[seen], atol=1e-5)
        wanted = np.ones_like(seen) if k_test == 5 else seen
        assert ((mine > -50) == wanted).all() and wanted.sum(axis=1).max() == min(asked["k_test"], clamp)


def test_cosines_without_k_test_are_the_ones_that_lavis_reranks_by(make):
    for network in ("blip", "albef"):
        model, loader = make(network).eval(), Items()
        with torch.no_grad():
            pictures = torch.cat([batch["image"] for batch in loader])
            states = model.network.visual_encoder.forward_features(pictures)
            tokens = model.tokenizer(CAPTIONS, padding="max_length", max_length=35, return_tensors="pt")
            text = model.network.text_encoder.forward_text(tokens).last_hidden_state
            images = normalize(model.network.vision_proj(states[:, 0]), dim=-1)
            expected = images @ normalize(model.network.text_proj(text[:, 0]), dim=-1).T
        np.testing.assert_allclose(model.compute_sim_matrix(loader)[0], expected, atol=1e-5)


def test_reranking_ends_where_the_cosines_end(make):
    """Pairs that the head did not see come after those it saw, in the order of their cosines."""
    model, loader = make("blip").eval(), Items()
    cosines = Matcher.compute_sim_matrix(model, loader)[0]
    by_image, _ = lavis_rerank.rerank(model, loader, 1)
    np.testing.assert_allclose(np.sort(by_image)[:, :-1], np.sort(cosines)[:, :-1] - 100, atol=1e-4)
    told = lavis_rerank.reranked_metrics(model, loader, 1, lavis_rerank.encode_split(model, loader)[:2])
    assert told["itm_txt_r10"] == retrieval_metrics(cosines, np.array(OWNERS))["txt_r10"]
    assert set(told) > {"itm_txt_r1", "itm_img_r1", "itm_rsum"}
