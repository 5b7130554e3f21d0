"""The losses of LAVIS's networks, and what they pull on, are those of LAVIS's own code, but for its mistakes."""

from __future__ import annotations

import pytest
import torch
from matchers.lavis_batches import a_batch

from lavis_itm_plugins.matchers.lavis_itm import draw


def the_likeliest(weights, count):
    return weights.argmax(dim=-1, keepdim=True)


@pytest.mark.parametrize("network", ["blip", "albef"])
def test_losses_and_gradients_are_those_of_lavis(network, make, monkeypatch):
    """Contrast with queues and the matching loss over two steps; the likeliest negatives instead of drawn ones."""
    monkeypatch.setattr(torch, "multinomial", the_likeliest)
    # a queue must hold a whole number of LAVIS's batches
    ours, theirs = (make(network, objective="itc_itm", queue_size=14) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    ours.train(), theirs.train()
    for step in range(2):
        batch = {**a_batch(seed=step), "epoch": step}
        parts, expected = ours(batch), theirs.network(batch)
        ours.zero_grad(), theirs.zero_grad()
        parts["loss"].backward(), expected.loss.backward()
        torch.testing.assert_close(parts["loss_base"], expected.loss_itc.detach(), rtol=1e-5, atol=1e-5)
        if network == "albef" and step == 1:
            # its negatives are drawn by cosines with momentum vectors, which have moved; ours by those of the step
            break
        torch.testing.assert_close(parts["loss_itm"], expected.loss_itm.detach(), rtol=1e-4, atol=1e-5)
        for (name, mine), other in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
            if mine.requires_grad:
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
        with torch.no_grad():
            for model in (ours, theirs):
                for parameter in model.network.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        ours.after_step()
        # LAVIS moves its copies before the next batch, ours after the step
        expected_queue = theirs.network.image_queue
        torch.testing.assert_close(ours.network.image_queue, expected_queue, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.network.idx_queue, theirs.network.idx_queue)


def test_blip2_losses_are_those_of_lavis(make, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", the_likeliest)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("lavis.models.blip2_models.blip2_qformer.all_gather_with_grad", lambda rows: rows)
    model = make("blip2", objective="itc_itm").train()
    # LAVIS counts another caption of the same image as a negative; here there is none
    batch = a_batch(count=4)
    parts, expected = model(batch), model.network(batch)
    torch.testing.assert_close(parts["loss_base"], expected.loss_itc.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["loss_itm"], expected.loss_itm.detach(), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_image_has_only_pairs_to_match(make):
    """LAVIS fails there: it has nothing to draw from."""
    for network in ("blip", "albef", "blip2"):
        model = make(network, objective="itc_itm").train()
        batch = {**a_batch(count=3), "image_id": torch.tensor([4, 4, 4])}
        loss = model(batch)["loss"]
        loss.backward()
        assert torch.isfinite(loss)


def test_negatives_are_drawn_by_likelihood_and_never_of_the_same_image():
    torch.manual_seed(0)
    ids = torch.tensor([0, 0, 1, 2])
    same = ids[:, None] == ids
    scores = torch.tensor([[9.0, 9, 0, 2]] * 4)
    drawn = torch.stack([draw(scores, same) for _ in range(400)])
    assert not same[torch.arange(4), drawn].any()
    # of row 0, columns 2 and 3 with shares of about exp(0) and exp(2), plus the floor
    share = (drawn[:, 0] == 3).float().mean()
    assert 0.75 < share < 0.95
