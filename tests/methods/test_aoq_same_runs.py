"""A run of itm_aoq ends with the same lists and weights when it is stopped or killed and resumed, or on two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import tiny
import torch
from methods.aoq_runs import SHARED, aoq_project, epochs, lists_of
from methods.runs import train
from runners.compare import assert_equal, assert_same_runs
from runners.farm import Farm
from scripts import run_script

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining import open_candidates
from lavis_itm_plugins.runners import loop

pytestmark = pytest.mark.usefixtures("as_before")

STEPS = 8


def stopped_and_resumed(folder, monkeypatch, name, at, **keys):
    """The folders of a run, and of the same run stopped by a signal at a step."""
    train(folder, aoq_project(folder, f"{name}_whole", **keys))
    stock, calls = loop._Stepper.accumulate, []

    def accumulate(*given):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*given)

    content = aoq_project(folder, f"{name}_stopped", **keys)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Stepper, "accumulate", accumulate)
        train(folder, content)
    train(folder, content, "run.resume_ckpt_path=auto")
    return folder / f"{name}_stopped", folder / f"{name}_whole"


@pytest.mark.parametrize("at", [2 * STEPS + 3, pytest.param(2 * STEPS, marks=pytest.mark.full)])
def test_a_stopped_run_goes_on_exactly(at, folder, monkeypatch):
    """Within the epoch of refreshed lists, or just before they are mined; averaged weights, regions left out."""
    plan = {"start_epoch": 1, "refresh_every": 1}
    keys = {"source": None, "candidates": plan, "max_epoch": 3, "region_drop": 0.2, "itm": {"ema": 0.9}}
    stopped, whole = stopped_and_resumed(folder, monkeypatch, f"stop{at}", at, **keys)
    assert_same_runs(stopped, whole)
    assert_equal(lists_of(stopped), lists_of(whole), "lists")
    # averaged weights name the lists too
    average = read_checkpoint(whole / "checkpoint_last.pth")["average"]["module._extra_state"]
    assert average["candidates"] == lists_of(whole)
    newest = lists_of(whole)["history"][-1]
    for file in (whole / "candidates" / newest).iterdir():
        assert file.read_bytes() == (stopped / "candidates" / newest / file.name).read_bytes()


def test_a_stopped_run_goes_on_with_its_round_one(folder, monkeypatch):
    """Exactly, and not with another one; a new run from its weights may have another."""
    shutil.copytree(folder / "plain", folder / "example")
    keys = {"source": "example", "model": SHARED, "max_epoch": 2, "itm": {"ema": 0.9}}
    stopped, whole = stopped_and_resumed(folder, monkeypatch, "distilled", STEPS + 3, **keys)
    assert_same_runs(stopped, whole)
    assert all(epoch["loss_distill"] > 0 for epoch in epochs(whole))
    checkpoint = read_checkpoint(whole / "checkpoint_last.pth")
    states = checkpoint["model"]["_extra_state"], checkpoint["average"]["module._extra_state"]
    assert states[0]["round_one"] == states[1]["round_one"] is not None
    shutil.copy(whole / "checkpoint_best.pth", folder / "example" / "checkpoint_best.pth")
    content = aoq_project(folder, "distilled_whole", **keys)
    # a finished run is only tested again, which needs no round one
    train(folder, content, "run.resume_ckpt_path=auto")
    with pytest.raises(ItmError, match=r"trained with another round one than .*checkpoint_best.pth holds now"):
        train(folder, content, "run.resume_ckpt_path=auto", "run.max_epoch=3")
    start = {**SHARED, "finetuned": str(whole / "checkpoint_best.pth"), "load_finetuned": True}
    train(folder, aoq_project(folder, "distilled_again", source="example", model=start, max_epoch=1))
    assert epochs(folder / "distilled_again")[0]["loss_distill"] > 0


@pytest.mark.full
@pytest.mark.parametrize(("event", "call"), [("batch", STEPS + 6), ("batch", 2 * STEPS + 1), ("metrics", 4)])
def test_a_killed_run_goes_on_exactly(event, call, folder, tmp_path):
    farm = Farm()
    plan = {"start_epoch": 1, "refresh_every": 1}
    keys = {"source": None, "candidates": plan, "max_epoch": 3, "region_drop": 0.2, "num_workers": 2}
    try:
        for name, kill in ((f"killed_{event}{call}", True), (f"whole_{event}{call}", False)):
            content = aoq_project(folder, name, itm={"save_every_steps": 3}, **keys)
            path = tiny.write_project(tmp_path / f"{name}.yaml", content)
            wanted = {"event": event, "call": call} if kill else {}
            code, output = farm.run(["train", "--cfg-path", str(path)], tmp_path / "log", **wanted)
            assert code == (-signal.SIGKILL if kill else 0), output
        killed = folder / f"killed_{event}{call}"
        code, output = farm.run(["train", "--resume", str(killed)], tmp_path / "log")
        assert code == 0, output
    finally:
        farm.close()
    assert_same_runs(killed, folder / f"whole_{event}{call}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_precomp(folder / "data", train=23)
    run_script("methods/aoq_ranks.py", folder)
    return folder


def test_two_ranks_mine_as_one_process(ranks):
    one, *both = (torch.load(ranks / f"mined_{name}.pt", weights_only=False) for name in ("1_0", "2_0", "2_1"))
    for found in both:
        assert found["report"] == one["report"] and one["report"]["dropped_captions"] > 0
        assert all((found[name] == one[name]).all() for name in one if name != "report")
    stores = [next(path for path in (ranks / f"lists_{size}").iterdir() if path.is_dir()) for size in (1, 2)]
    for file in stores[0].iterdir():
        assert file.read_bytes() == (stores[1] / file.name).read_bytes()
    assert (open_candidates(stores[0]).negatives.captions == one["captions"]).all()


@pytest.mark.parametrize("name", ["two_rounds", "refresh", "shared"])
def test_two_ranks_train_as_one_process(ranks, name):
    one, two = (torch.load(ranks / f"{name}_{size}.pt") for size in (1, 2))
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-6, atol=1e-9, msg=key)
    for lines in zip(two["metrics"].splitlines(), one["metrics"].splitlines(), strict=True):
        metrics, reference = map(json.loads, lines)
        assert metrics.pop("split") == reference.pop("split")
        assert metrics == pytest.approx(reference, rel=1e-6, abs=1e-7)
