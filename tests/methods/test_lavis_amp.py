"""LAVIS's own networks in bfloat16 on a CPU: layers in half precision; scores, losses and weights in single."""

from __future__ import annotations

import json
import math

import lavis_tiny
import pytest
import tiny
import torch
from methods.lavis_matrix import METHODS, OBJECTIVES, model_section, project
from omegaconf import OmegaConf
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lavis_itm_plugins.methods.base import encode_batch
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.train import run_training

BATCH, STEPS = 30, 4
DIAGONAL = {("clip", "coder"), ("blip", "dbl_momentum"), ("albef", "plain"), ("blip2", "plain")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lavis")
    lavis_tiny.write_words(folder)
    return folder


class Seen:
    """Types that a matcher's class computes with: of its linear layers while they are trained, scores and losses."""

    def __init__(self, monkeypatch, matcher):
        self.layers, self.scores, self.losses = set(), set(), set()
        score, losses = matcher.score, matcher.matching_losses

        def watched_score(*given):
            scores = score(*given)
            self.scores.add((torch.is_autocast_enabled("cpu"), scores.dtype))
            return scores

        def watched_losses(*given):
            parts = losses(*given)
            self.losses |= {(name, value.dtype) for name, value in parts.items()}
            return parts

        monkeypatch.setattr(matcher, "score", watched_score)
        monkeypatch.setattr(matcher, "matching_losses", watched_losses)

    def layer(self, module, _inputs, output):
        if isinstance(module, nn.Linear) and module.training and torch.is_autocast_enabled("cpu"):
            self.layers.add(output.dtype)


@pytest.fixture
def mixed_run(folder, monkeypatch):
    """Trains two epochs of two steps with LAVIS's own losses, validates and tests; gives back the runner."""
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(folder))

    def run(network, method, dtype):
        seen = Seen(monkeypatch, registered("model")[f"itm_{network}"])
        name = f"{network}_{method}_{dtype}"
        settings = {"amp": True, "itm": {"amp_dtype": dtype}, "batch_size_train": BATCH, "test_splits": ["test"]}
        content = project(folder, name, model_section(network, method, folder, OBJECTIVES[network]), **settings)
        handle = register_module_forward_hook(seen.layer)
        try:
            runner = run_training(tiny.write_project(folder / f"{name}.yaml", content))
        finally:
            handle.remove()
            torch.use_deterministic_algorithms(False)
        check_types(seen, getattr(torch, dtype), runner)
        return runner

    return run


def check_types(seen, dtype, runner):
    assert dtype in seen.layers
    assert (True, torch.float32) in seen.scores and {found for _, found in seen.scores} == {torch.float32}
    assert ("loss_base", torch.float32) in seen.losses and {found for _, found in seen.losses} == {torch.float32}
    for where, value in runner._model.state_dict().items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert value.dtype == torch.float32 and value.isfinite().all(), where
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    assert [line["split"] for line in lines] == ["train", "val", "train", "val", "test"]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("network", "method"),
    [
        pytest.param(network, method, marks=[] if (network, method) in DIAGONAL else [pytest.mark.full])
        for network in lavis_tiny.NETWORKS
        for method in METHODS
        if method != "dbl_frozen"
    ],
)
def test_bfloat16(network, method, mixed_run):
    assert mixed_run(network, method, "bfloat16").scaler is None


@pytest.mark.parametrize(
    "network", [name if name == "blip" else pytest.param(name, marks=pytest.mark.full) for name in lavis_tiny.NETWORKS]
)
def test_float16(network, mixed_run):
    """With torch's scaler: it halves its scale for each step that it leaves out, which moves no queue either."""
    runner = mixed_run(network, "plain", "float16")
    taken = max((int(state["step"]) for state in runner.optimizer.state.values()), default=0)
    assert runner.scaler.get_scale() == 2.0 ** (16 - (STEPS - taken))
    if network in ("blip", "albef"):
        owners = runner._model.network.idx_queue
        assert int((owners >= 0).sum()) == min(taken * BATCH, owners.numel())


def test_contrast_with_queues_is_single(folder, monkeypatch):
    section = OmegaConf.create(lavis_tiny.section("blip", folder / "vocab.txt", objective="itc"))
    model = registered("model")["itm_blip"].from_config(section)
    torch.manual_seed(0)
    image, ids = torch.rand(3, 3, lavis_tiny.SIZE, lavis_tiny.SIZE), torch.arange(3)
    batch = {"image": image, "text_input": ["a red ball", "two dogs", "a cat"], "image_id": ids}
    encoded, keys = encode_batch(model, batch), model._momentum_keys(batch, ids)
    monkeypatch.setattr(model, "_momentum_keys", lambda *_given: keys)
    whole = model.matching_losses(batch, encoded, torch.eye(3))["loss_base"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.matching_losses(batch, encoded, torch.eye(3))["loss_base"], whole)
