"""Who learns in itm_dbl: each branch from its own losses, optimised as a plain matcher is; an anchor never."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import IDS, LOSSES, batch, built, plain_matcher

from lavis_itm_plugins.losses import triplet_loss
from lavis_itm_plugins.methods.base import same_image

pytestmark = pytest.mark.usefixtures("configuration")


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("loss", [*LOSSES, "none"])
def test_no_branch_and_no_anchor_gets_another_s_gradient(loss, mutual, anchor):
    """Branch 0's gradients are those of its base loss alone, unless it learns from the others too."""
    model = built("peer", anchor, loss=loss, mutual=mutual)
    model(batch())["loss"].backward()
    parts = [{name: p.grad.clone() for name, p in branch.named_parameters()} for branch in model.branches]
    alone = []
    for branch in model.branches:
        branch.zero_grad()
        samples = batch()
        scores = branch.score(branch.encode_images(samples), branch.encode_captions(samples["text_input"]))
        triplet_loss(scores, positives=same_image(torch.tensor(IDS))).backward()
        alone.append({name: p.grad for name, p in branch.named_parameters()})
    same = [all(torch.equal(own[name], plain[name]) for name in own) for own, plain in zip(parts, alone, strict=True)]
    assert same == [not mutual or loss == "none", loss == "none"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scenario", ["momentum", "frozen"])
def test_an_anchor_gets_no_gradient_and_stays_as_it_is(scenario, loss, anchor):
    model = built(scenario, anchor, loss=loss).train()
    network = model.momentum_anchor.module if scenario == "momentum" else model.frozen.matcher
    assert not any(part.training for part in network.modules())
    before = {name: value.clone() for name, value in network.named_parameters()}
    model(batch())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(p.grad is not None for p in model.matcher.parameters())
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in model.matcher.parameters()}
    assert [{id(p) for p in group} for group in model.clip_groups()] == [trained]
    torch.optim.SGD(model.param_groups(), lr=1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_each_peer_is_optimised_and_clipped_as_a_plain_matcher(anchor):
    model = built("peer", anchor, branches=3)
    plain = plain_matcher()
    shapes = [[p.shape for p in group["params"]] for group in plain.param_groups()]
    groups = model.param_groups()
    assert [[p.shape for p in group["params"]] for group in groups] == 3 * shapes
    assert len({id(p) for group in groups for p in group["params"]}) == sum(1 for _ in model.parameters())
    assert [{id(p) for p in g} for g in model.clip_groups()] == [
        {id(p) for p in b.parameters()} for b in model.branches
    ]
