"""Momentum towers and queues of LAVIS's networks move with every step that was taken, and with nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lavis.models.base_model import MomentumDistilationMixin
from matchers.lavis_batches import CAPTIONS, a_batch

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.lavis_itm import Keys, enqueue
from lavis_itm_plugins.methods import base
from lavis_itm_plugins.methods.coder_config import DictionaryConfig
from lavis_itm_plugins.methods.coder_keys import KeyTower
from lavis_itm_plugins.methods.dbl import Dbl, DblConfig
from lavis_itm_plugins.momentum import OwnCopy


def test_a_queue_takes_batches_of_any_size():
    queue = torch.zeros(1, 5)
    network = SimpleNamespace(
        image_queue=queue.clone(),
        text_queue=queue.clone(),
        idx_queue=torch.full((1, 5), -100),
        queue_ptr=torch.zeros(1, dtype=torch.long),
    )
    for first, count in ((0, 3), (3, 4), (7, 8)):
        rows = torch.arange(first, first + count)
        enqueue(network, Keys(rows[:, None].float(), -rows[:, None].float(), rows))
    # by item % 5, the newest of each slot
    assert network.idx_queue[0].tolist() == [10, 11, 12, 13, 14]
    assert torch.equal(network.image_queue, network.idx_queue.float())
    assert torch.equal(network.text_queue, -network.idx_queue.float())
    assert int(network.queue_ptr) == 0


def test_a_skipped_step_leaves_momentum_towers_and_queues(make):
    model = make("blip", objective="itc").train()
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    model(a_batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
    model(a_batch())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 1
    model.after_step()
    assert int(model.network.queue_ptr) == 7
    towers = [name for name in before if "_m." in name and name.replace("_m.", ".") in trained]
    after = model.state_dict()
    assert towers and all(bool((after[name] != before[name]).all()) for name in towers)


def test_a_loop_that_tells_of_no_step_is_refused(make, monkeypatch):
    """LAVIS's own task does not; momentum towers and queues would stand still, and nobody would see it."""
    monkeypatch.setattr(base, "UNHEARD", 2)
    model = make("albef", objective="itc").train()
    for step in range(4):
        model({**a_batch(count=2), "iters": step})
        model.after_step()
    for step in range(2):
        model({**a_batch(count=2), "iters": step})
    with pytest.raises(ItmError, match=r"itm_albef was told of none of 2 steps, .*; set run.runner: itm_runner"):
        model({**a_batch(count=2), "iters": 2})


def test_momentum_towers_rest(make):
    model = make("blip", objective="itc", bert={"dropout": 0.5}).train()
    assert model.network.text_encoder.training
    assert not model.network.text_encoder_m.training
    assert issubclass(type(model.network), MomentumDistilationMixin)
    twin = model.momentum_twin()
    assert torch.equal(*(twin.encode_captions(CAPTIONS).pooled for _ in range(2)))
    assert make("blip").momentum_twin() is None


def test_dbl_and_coder_use_the_momentum_towers_that_are_there(make):
    """No second copy: the anchor and the key tower are the network's own, which it moves."""
    model = make("blip", objective="itc").train()
    dbl = Dbl(DblConfig(base_loss=model.config.base_loss), model)
    size = sum(p.numel() for p in dbl.parameters())
    assert size == sum(p.numel() for p in model.parameters())
    assert isinstance(KeyTower(model, None, DictionaryConfig(size=8), 16, copies=True).matcher, OwnCopy)
    batch = a_batch()
    anchor = dbl.momentum_anchor.scores(batch)
    dbl(batch)["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-2 * torch.randn_like(parameter) if parameter.requires_grad else 0
    dbl.after_step()
    assert int(dbl.momentum_anchor.updates) == 1
    moved = dbl.momentum_anchor.scores(batch)
    assert not torch.equal(anchor, moved)
    assert (anchor - moved).abs().max() < 0.05
    assert not moved.requires_grad
