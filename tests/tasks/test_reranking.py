"""`run.itm.rerank`: a fast matcher's candidates, scored by a cross-attention matcher."""

from __future__ import annotations

import pytest
import tiny
import torch
from matchers.sets import make as make_matcher
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.encoders.vocabulary import SPECIAL
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.loading import load_matcher
from lavis_itm_plugins.tasks.retrieval import ItmRetrievalTask


def make(name):
    """Every word is known: captions that a network cannot tell apart are tied but for rounding."""
    forms = ("a", "the", "there", "one", "in", "grass", "photo", "of", "see")
    return make_matcher(name, words=[*SPECIAL, *forms, *tiny.COLOURS, *tiny.THINGS]).eval()


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    root = tiny.write_precomp(tmp_path_factory.mktemp("data"), regions=4)
    dataset = PrecompBuilder({"root": str(root), "data_type": "features"}).build()["val"]
    return DataLoader(dataset, batch_size=3, collate_fn=dataset.collater)


@pytest.fixture
def shortlist(tmp_path):
    torch.save({"model": make("vsrn").state_dict()}, tmp_path / "fast.pth")
    return str(tmp_path / "fast.pth")


def evaluated(matcher, loader, **itm):
    return ItmRetrievalTask(cfg=OmegaConf.create({"itm": itm})).evaluation(matcher, loader)


@pytest.mark.parametrize("name", ["scan_t2i", "saf"])
def test_with_all_as_candidates_the_metrics_are_exact(name, loader, shortlist):
    matcher = make(name)
    plain = evaluated(matcher, loader)
    assert evaluated(matcher, loader, rerank={"checkpoint": shortlist, "k": 40}) == plain
    assert plain["rsum"] > 0


def test_a_single_candidate_is_the_fast_matcher_s_choice(loader, shortlist):
    both = evaluated(make("scan_t2i"), loader, rerank={"checkpoint": shortlist, "k": 1})
    alone = evaluated(load_matcher(shortlist), loader)
    assert both == alone


def test_small_tiles_give_the_same_metrics(loader, monkeypatch):
    matcher = make("bfan")
    plain = evaluated(matcher, loader)
    monkeypatch.setattr(type(matcher), "bytes_per_pair", 2**20)
    assert evaluated(matcher, loader, memory_budget_mb=100) == plain


def test_what_does_not_fit_is_said_in_a_sentence(loader, shortlist, tmp_path):
    with pytest.raises(ItmError, match="set coco_1k_folds: 0 beside it"):
        evaluated(make("bfan"), loader, coco_1k_folds=2, rerank={"checkpoint": shortlist})
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(ItmError, match=r"bare.pth does not say what network it is; give a checkpoint of this plugin"):
        evaluated(make("bfan"), loader, rerank={"checkpoint": str(tmp_path / "bare.pth")})
