"""VSRN's region reasoning and captioner against the official code, and what its masks mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FIXTURES

from lavis_itm_plugins.encoders.captioning import Captioner
from lavis_itm_plugins.encoders.reasoning import RegionReasoning, norm_over_regions
from lavis_itm_plugins.matchers.vse import unit

FILE = FIXTURES / "golden_encoders.npz"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def golden(case, path=FILE):
    """Arrays of one case in float64; one that starts with @ is another's, under that name."""
    found = {}
    with np.load(path) as file:
        for key in file.files:
            if key.startswith(f"{case}/"):
                value = file[key]
                if value.dtype.kind == "U":
                    value = file[str(value)[1:]] if str(value).startswith("@") else value
                if value.dtype.kind != "U":
                    tensor = torch.from_numpy(np.array(value))
                    found[key.removeprefix(f"{case}/")] = tensor.double() if tensor.is_floating_point() else tensor
    return found


def prefixed(case, prefix):
    return {key.removeprefix(prefix): value for key, value in case.items() if key.startswith(prefix)}


def reasoning_of(case):
    weights = prefixed(case, "w/")
    linear = torch.nn.Linear(*reversed(weights["fc.weight"].shape)).double()
    linear.load_state_dict(prefixed(weights, "fc."))
    model = RegionReasoning(len(weights["fc.weight"]), "f30k" if "bn.weight" in weights else "coco").double()
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
    return linear, model


def check(name, path):
    case = golden(name, path)
    linear, model = reasoning_of(case)
    model.train("bn_train" in name)
    features = case["in/images"].requires_grad_()
    images, regions, _ = model(linear(features), None)
    (unit(images) * case["in/cotangent"]).sum().backward()
    torch.testing.assert_close(unit(images), case["out/emb"], **EXACT)
    torch.testing.assert_close(regions, case["out/regions"], **EXACT)
    torch.testing.assert_close(features.grad, case["grad/images"], rtol=1e-8, atol=1e-11)
    buffers = dict(model.named_buffers())
    for key, value in prefixed(case, "out/after/").items():
        torch.testing.assert_close(buffers[key], value, **EXACT)


def test_images_are_those_of_the_official_code():
    check("vsrn_gcn_bn_train", FILE)


@pytest.mark.parametrize("name", ["vsrn_gcn", "vsrn_gcn_f30k"])
def test_both_forms_in_evaluation(name, shared):
    check(name, shared / "golden" / "matchers.npz")


def test_captions_cost_what_they_cost_the_official_code():
    case = golden("vsrn_caption")
    model = Captioner(16, 13, hidden=8, word_dim=5, dropout=0.0).double()
    model.load_state_dict(prefixed(case, "w/"))
    regions = case["in/regions"].requires_grad_()
    real = torch.ones(regions.shape[:2], dtype=torch.bool)
    loss = model(regions, real, case["in/labels"], case["in/masks"].sum(dim=1)).mean()
    loss.backward()
    torch.testing.assert_close(loss, case["out/loss"].squeeze(), **EXACT)
    torch.testing.assert_close(regions.grad, case["grad/regions"], **EXACT)


@pytest.mark.parametrize("form", ["f30k", "coco"])
@pytest.mark.parametrize("training", [False, True])
def test_masked_regions_are_as_if_they_were_not_there(form, training):
    torch.manual_seed(0)
    model = RegionReasoning(6, form).double().train(training)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    regions = torch.randn(3, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False]] * 3)
    regions[:, 1] = float("nan")
    images, rows, real = model(regions, mask)
    alone, few, _ = model(regions[:, [0, 2, 3]], None)
    torch.testing.assert_close(images, alone, **EXACT)
    torch.testing.assert_close(rows[:, :3], few, **EXACT)
    assert real.tolist() == [[True, True, True, False, False]] * 3 and not rows[:, 3:].any()


def test_a_single_region_is_normed_over_its_features():
    region = torch.tensor([[[3.0, 4.0]]])
    torch.testing.assert_close(norm_over_regions(region), torch.tensor([[[0.6, 0.8]]]))
    two = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])
    torch.testing.assert_close(norm_over_regions(two), torch.tensor([[[0.6, 0.0], [0.8, 0.0]]]))


def test_what_is_behind_a_caption_does_not_count():
    torch.manual_seed(0)
    model = Captioner(6, 9, hidden=4, word_dim=3, dropout=0.0)
    regions, real = torch.randn(2, 3, 6), torch.tensor([[True, True, True], [True, True, False]])
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0]])
    cost = model(regions, real, ids, torch.tensor([4, 3]))
    other = regions.clone()
    other[1, 2] = 9.0
    ids[0, 4] = ids[1, 4] = 8
    torch.testing.assert_close(model(other, real, ids, torch.tensor([4, 3])), cost)
    torch.testing.assert_close(model(regions[1:, :2], real[1:, :2], ids[1:, :3], torch.tensor([3])), cost[1:])
