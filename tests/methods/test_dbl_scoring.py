"""Which branch of itm_dbl is scored, and that the average is the mean of the branches' scores."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import IDS, batch, built, matcher_section, scores_of
from omegaconf import OmegaConf

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.branches import AveragedBranches
from lavis_itm_plugins.methods.method import resolve_matcher
from lavis_itm_plugins.tasks.retrieval import chosen_branch

pytestmark = pytest.mark.usefixtures("configuration")


def test_branches_are_chosen_for_evaluation(anchor):
    peers, momentum, frozen = (built(scenario, anchor) for scenario in ("peer", "momentum", "frozen"))
    assert chosen_branch(peers, "target") is peers.matcher is chosen_branch(peers, 1)
    assert chosen_branch(peers, "anchor") is peers.branches[0] is chosen_branch(peers, "0")
    assert chosen_branch(momentum, "anchor") is momentum.momentum_anchor.module
    assert chosen_branch(frozen, "anchor") is frozen.frozen.matcher
    assert chosen_branch(frozen, "target") is frozen.evaluated() is frozen.matcher
    for model, name in ((peers, "2"), (momentum, "average"), (frozen, 1), (peers, "targt")):
        with pytest.raises(ItmError, match=f'unknown run.itm.eval_branch "{name}"; '):
            chosen_branch(model, name)
    with pytest.raises(ItmError, match=r"run.itm.eval_branch is anchor, but VseMatcher has one branch"):
        chosen_branch(frozen.matcher, "anchor")


def test_the_average_is_the_mean_of_the_branches_scores(anchor):
    model = built("peer", anchor, branches=3)
    averaged, samples = chosen_branch(model, "average"), batch()
    expected = torch.stack([scores_of(branch, samples) for branch in model.branches]).mean(0)
    torch.testing.assert_close(scores_of(averaged, samples), expected)
    images, captions = averaged.encode_images(samples), averaged.encode_captions(samples["text_input"])
    torch.testing.assert_close(averaged.score_pairs(images, captions), expected.diagonal())
    # cut in tiles, as evaluation does
    torch.testing.assert_close(averaged.score(images[1:3], captions[2:]), expected[1:3, 2:])
    assert averaged.bytes_per_pair == 3 * VseMatcher.bytes_per_pair
    assert not averaged.training and model.train().branch("average").training


class Regions(VseMatcher):
    """A matcher that scores sets: the largest product of a region and a word."""

    def encode_images(self, samples):
        return Encoded(regions=samples["image"] * self.text_encoder.words.embed.weight.mean(), mask=samples["mask"])

    def encode_captions(self, captions):
        return Encoded(regions=self.text_encoder.words.embed.weight[: len(captions), None, :].expand(-1, 2, -1))

    def score(self, images, captions):
        products = torch.einsum("ird,jwd->ijrw", images.regions, captions.regions)
        return products.masked_fill(~images.mask[:, None, :, None], -9).amax(dim=(2, 3))


def test_an_average_of_matchers_that_score_sets():
    branches = []
    for seed in range(2):
        torch.manual_seed(seed)
        branches.append(Regions.from_config(OmegaConf.create(resolve_matcher(matcher_section(), None, "model"))))
    samples = {**batch(), "mask": torch.tensor([[True, True, False]] * len(IDS))}
    averaged = AveragedBranches(branches)
    expected = torch.stack([scores_of(branch, samples) for branch in branches]).mean(0)
    torch.testing.assert_close(scores_of(averaged, samples), expected)
