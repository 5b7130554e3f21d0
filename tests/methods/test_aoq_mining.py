"""itm_aoq mines in evaluation mode, into lists that are named by their model, and trains plainly until then."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from methods.aoq_batch import ROWS, items, method
from runners.ranks import small_matcher
from torch.nn.functional import dropout

from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods import candidates
from lavis_itm_plugins.methods.candidates import CandidateConfig, MinedLists, mine_training_set, model_identity
from lavis_itm_plugins.mining import MiningSettings, open_candidates


def test_before_the_first_mining_items_are_plain(split):
    batch = items(split, None, region_drop=0.2).__getitems__(ROWS)
    assert batch.keys() == CaptionDataset(split, region_drop=0.2).__getitems__(ROWS).keys()


def test_plain_until_the_first_mining(split, sampler):
    plain = CaptionDataset(split, seed=3).__getitems__(ROWS)
    plain["image"] = plain["image"].double()
    model = method(candidates={"start_epoch": 2})
    assert model.losses({**plain, "epoch": 1}).keys() == {"loss_base"}
    with pytest.raises(ItmError, match=r"mines in hooks that only itm_runner calls; set run.runner: itm_runner"):
        model.losses({**plain, "epoch": 2})


def test_mining_is_in_evaluation_mode_and_named_by_the_first_rank(split, tmp_path, monkeypatch):
    matcher, dataset = small_matcher().float(), CaptionDataset(split)
    stock, settings = matcher.score, MiningSettings(captions_per_image=4, images_per_caption=3)
    monkeypatch.setattr(matcher, "score", lambda *pair: dropout(stock(*pair), 0.5, matcher.training))
    expected = open_candidates(mine_training_set(tmp_path / "eval", matcher.eval(), dataset, settings))
    copied = []
    monkeypatch.setattr(candidates, "copy_from_first_rank", copied.append)
    monkeypatch.setattr(candidates, "from_first_rank", lambda mine: {**mine, "model": {"weights": "the first one's"}})
    found = open_candidates(mine_training_set(tmp_path / "train", matcher.train(), dataset, settings))
    np.testing.assert_array_equal(found.negatives.caption_scores, expected.negatives.caption_scores)
    assert matcher.training and copied == [matcher]
    assert found.made_from["model"] == {"weights": "the first one's"} and found.fingerprint != expected.fingerprint


def test_another_configuration_is_another_model(split):
    matcher = small_matcher()
    before = model_identity(matcher)
    matcher.config = replace(matcher.config, embed_dim=99)
    assert model_identity(matcher) != before


def test_averaged_weights_share_the_lists():
    lists = MinedLists(CandidateConfig())
    assert deepcopy({"lists": lists})["lists"] is lists
