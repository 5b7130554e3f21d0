"""Each peer of itm_dbl starts from its own seed, or all from a checkpoint, and draws from its own random stream."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import batch, built, plain_matcher, section

from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.branches import own_stream
from lavis_itm_plugins.methods.dbl import Dbl

pytestmark = pytest.mark.usefixtures("configuration")


def test_peers_start_apart_each_from_its_own_seed(anchor, tmp_path):
    torch.manual_seed(1)
    plain = plain_matcher()
    after = torch.rand(1)
    model = built("peer", anchor, branches=3)
    # the first is the plain matcher of the same seed, and building the others drew nothing
    assert torch.equal(torch.rand(1), after)
    first, second, third = (list(branch.parameters()) for branch in model.branches)
    assert all(torch.equal(p, q) for p, q in zip(first, plain.parameters(), strict=True))
    assert not torch.equal(first[0], second[0]) and not torch.equal(second[0], third[0])
    again = built("peer", anchor, branches=2)
    assert all(torch.equal(p, q) for p, q in zip(again.branches[1].parameters(), second, strict=True))
    same = built("peer", anchor, same_start=True)
    assert all(torch.equal(p, q) for p, q in zip(*(b.parameters() for b in same.branches), strict=True))


@pytest.mark.parametrize("where", ["model", "matcher"])
def test_peers_that_start_from_a_checkpoint_all_do(where, anchor):
    keys = section("peer", branches=3)
    (keys if where == "model" else keys.matcher).finetuned = anchor[1]
    for branch in Dbl.from_config(keys).branches:
        assert all(torch.equal(p, q) for p, q in zip(branch.parameters(), anchor[0].parameters(), strict=True))


def test_other_branches_draw_from_their_own_stream(anchor):
    """Dropout of branch 0 is a plain matcher's; that of the others is a function of seed, branch, epoch and step."""
    model = built("peer", anchor, branches=3).train()
    torch.manual_seed(9)
    plain = VseMatcher.losses(model.branches[0], batch(epoch=0))["loss_base"]
    after = torch.rand(1)
    torch.manual_seed(9)
    first = model(batch(epoch=0, iters=3, num_iters_per_epoch=4))
    assert torch.equal(torch.rand(1), after) and torch.equal(first["loss_base_0"], plain.detach())
    again, later = (model(batch(epoch=0, iters=step, num_iters_per_epoch=4)) for step in (3, 2))
    for name in ("loss_base", "loss_base_1"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], later[name])


def test_a_stream_of_its_own_leaves_the_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    drawn = [torch.rand(1)]
    with own_stream(torch.device("cpu"), 1, 2, 3):
        inside = torch.rand(1)
    drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)
    with own_stream(torch.device("cpu"), 1, 2, 3):
        assert torch.equal(torch.rand(1), inside)
