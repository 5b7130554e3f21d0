"""What of LAVIS's networks is trained: each such weight gets a gradient, and lower layers learn more slowly."""

from __future__ import annotations

import lavis_tiny
import pytest
import torch
from matchers.lavis_batches import a_batch


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
@pytest.mark.parametrize("objective", ["plain", "itm", "itc", "itc_itm"])
def test_what_is_trained_gets_a_gradient(network, objective, make):
    """DDP waits for ever for a parameter without one."""
    if network == "clip" and "itm" in objective:
        pytest.skip("CLIP has no matching head")
    for freeze in ([], ["image"]):
        model = make(network, objective=objective, freeze=freeze).train()
        model(a_batch())["loss"].backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
    assert not any(p.requires_grad for p in model.network.get_submodule(model.towers["image"][0]).parameters())
    assert not model.network.get_submodule(model.towers["image"][0]).training


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
def test_recomputing_blocks_changes_no_gradient(network, make):
    gradients = []
    for recompute in (False, True):
        keys = {} if network == "clip" else {"bert": {"dropout": 0.1}}
        model = make(network, checkpoint=recompute, **keys).train()
        torch.manual_seed(3)
        model(a_batch())["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
def test_lower_layers_learn_more_slowly(network, make):
    model = make(network, layer_decay=0.5, objective="plain" if network == "clip" else "itm")
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in model.param_groups() for p in group["params"]}
    assert len(scales) == sum(p.requires_grad for p in model.parameters())
    for stack in model.stacks:
        assert {s for n, s in scales.items() if n.startswith(f"network.{stack.blocks}.1.")} == {1.0}
        assert {s for n, s in scales.items() if n.startswith(f"network.{stack.blocks}.0.")} == {0.5}
        assert {s for n, s in scales.items() if n.removeprefix("network.").startswith(stack.below)} == {0.25}


def test_albef_without_matching_has_fewer_layers(make):
    """Its upper layers fuse; the rate of those that read is not lowered for them."""
    model = make("albef", layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in model.param_groups() for p in group["params"]}
    assert {s for n, s in scales.items() if "text_encoder.encoder.layer." in n} == {1.0}
    assert {s for n, s in scales.items() if "text_encoder.embeddings." in n} == {0.5}
