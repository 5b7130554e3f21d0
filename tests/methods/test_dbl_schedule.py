"""What the steps of a run change in itm_dbl: the momentum anchor, the boost's weight, and a line as an epoch ends."""

from __future__ import annotations

import logging

import pytest
import torch
from methods.dbl_batch import batch, built, section

from lavis_itm_plugins.methods.dbl import Dbl

pytestmark = pytest.mark.usefixtures("configuration")


def test_the_momentum_anchor_starts_as_the_target_and_follows_after_each_step(configuration):
    configuration.config.run.update(max_epoch=2, accum_grad_iters=2)
    model = Dbl.from_config(section(momentum=0.8))
    target, copy = model.matcher, model.momentum_anchor.module
    assert all(torch.equal(p, q) for p, q in zip(target.parameters(), copy.parameters(), strict=True))
    # three updates in an epoch of five batches
    told = model(batch(epoch=0, iters=0, num_iters_per_epoch=5))
    assert told["momentum"].item() == pytest.approx(0.8)
    start = next(copy.parameters()).clone()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += 1.0
    model.after_step()
    torch.testing.assert_close(next(copy.parameters()), start + 0.2)
    model(batch(epoch=1, iters=1, num_iters_per_epoch=5))
    for _ in range(2):
        model.after_step()
    halfway = model(batch(epoch=1, iters=1, num_iters_per_epoch=5))["momentum"].item()
    assert halfway == pytest.approx(0.9)
    assert int(model.state_dict()["momentum_anchor.updates"]) == 3


def test_the_weight_grows_over_its_warm_up(anchor):
    model = built("frozen", anchor, weight=2.0, weight_warmup=1.5)
    weights = [
        model(batch(epoch=e, iters=i, num_iters_per_epoch=4))["boost_weight"] for e, i in [(0, 0), (0, 3), (1, 2)]
    ]
    assert [w.item() for w in weights] == pytest.approx([0.0, 1.0, 2.0])
    assert model(batch(epoch=0, iters=0, num_iters_per_epoch=4))["loss_boost"] == 0


def test_an_epoch_ends_with_a_line_on_the_boost(anchor, caplog):
    caplog.set_level(logging.INFO)
    for beta, words in ((0.0, "the boost is asleep (0% of"), (20.0, "the boost is saturated (100% of")):
        model = Dbl.from_config(section("frozen", anchor=anchor[1], beta=beta)).eval()
        caplog.clear()
        for step in range(2):
            model(batch(epoch=0, iters=step, num_iters_per_epoch=2))
        [line] = [record.message for record in caplog.records if record.message.startswith("dbl:")]
        assert words in line and "positives gained" in line


@pytest.mark.parametrize("loss", ["contrastive", "distill_kl", "none"])
def test_losses_without_a_margin_are_told_of_no_beta(loss, anchor, caplog):
    caplog.set_level(logging.INFO)
    model = built("frozen", anchor, loss=loss)
    caplog.clear()
    model(batch(epoch=0, iters=0, num_iters_per_epoch=1))
    lines = [record.message for record in caplog.records if record.message.startswith("dbl:")]
    assert [f"dbl: {loss}: in " in line and "beta" not in line for line in lines] == ([] if loss == "none" else [True])
