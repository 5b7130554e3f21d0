"""itm_aoq through the runner: two rounds, refresh, stop, kill and resume, two ranks, and the mistakes people make."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from lavis.common.registry import registry
from methods.runs import plain_run, train
from runners.compare import assert_equal, assert_same_runs
from runners.farm import Farm

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.mining import open_candidates
from lavis_itm_plugins.runners import loop

STEPS = 8
LISTS = {"captions_per_image": 9, "images_per_caption": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and the run `plain` of round one."""
    return plain_run(tmp_path_factory.mktemp("aoq"))


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def aoq_project(folder, name, *, source="plain", candidates=None, model=None, itm=None, region_drop=0.0, **run):
    content = tiny.project(folder / "data", folder, itm={"run_name": name, **(itm or {})}, **run)
    content["datasets"]["itm_precomp"]["region_drop"] = region_drop
    lists = {**LISTS, **({"source": str(folder / source)} if source else {}), **(candidates or {})}
    section = {"arch": "itm_aoq", "model_type": "two_rounds", "matcher": content["model"], "candidates": lists}
    content["model"] = {**section, **(model or {})}
    return content


def epochs(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def lists_of(folder):
    return read_checkpoint(folder / "checkpoint_last.pth")["model"]["_extra_state"]["candidates"]


def stores_of(folder):
    return [path for path in (folder / "candidates").iterdir() if path.is_dir()]


def test_two_rounds(folder, caplog):
    """The lists are those of round one's weights; the run is evaluated without them."""
    caplog.set_level(logging.INFO)
    train(folder, aoq_project(folder, "two", model={"init": "checkpoint"}))
    run = folder / "two"
    [store] = stores_of(run)
    assert lists_of(run) == {"history": [store.name], "epoch": 0}
    mined = open_candidates(store)
    assert mined.negatives.captions.shape == (24, 9) and mined.negatives.images.shape == (120, 5)
    assert f"candidate lists {store}: " in caplog.text and "short_images 0" in caplog.text
    assert {"loss_offline", "aoq_weight", "aoq_offline_over_online", "aoq_cross_pairs"} <= epochs(run)[0].keys()
    shutil.rmtree(run / "candidates")
    result = evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth")
    assert result.split == "test" and result.metrics["rsum"] > 0


def test_a_cross_attention_matcher_takes_the_lists_of_another_network(folder):
    """As the paper does: one model's lists for all."""
    matcher = {
        "arch": "itm_scan",
        "model_type": "f30k",
        "embed_dim": 16,
        "min_count": 1,
        "text": {"word_dim": 8, "hidden": 16},
    }
    train(folder, aoq_project(folder, "scan", model={"matcher": matcher}, max_epoch=1))
    train(folder, aoq_project(folder, "vse", max_epoch=1))
    assert lists_of(folder / "scan") == lists_of(folder / "vse")
    assert epochs(folder / "scan")[0]["loss_offline"] > 0


def test_init_says_where_round_two_starts(folder):
    """One step at a rate of nothing leaves the weights as they were."""
    plain = read_checkpoint(folder / "plain" / "checkpoint_best.pth")["model"]
    for init, same in (("checkpoint", True), ("scratch", False)):
        name = f"init_{init}"
        train(folder, aoq_project(folder, name, model={"init": init}, max_epoch=1, init_lr=1e-30))
        state = read_checkpoint(folder / name / "checkpoint_last.pth")["model"]
        words = state["matcher.text_encoder.words.embed.weight"]
        assert torch.equal(words, plain["text_encoder.words.embed.weight"]) is same


def test_lists_are_refreshed_and_old_ones_deleted(folder, caplog):
    """Plain until the third epoch; then every epoch has lists of the weights it begins with."""
    caplog.set_level(logging.INFO)
    plan = {"start_epoch": 1, "refresh_every": 1}
    train(folder, aoq_project(folder, "refresh", source=None, candidates=plan, max_epoch=6))
    run = folder / "refresh"
    state = lists_of(run)
    assert len(set(state["history"])) == 3 and state["epoch"] == 5
    assert {path.name for path in stores_of(run)} == set(state["history"])
    assert caplog.text.count("beside the lists before: overlap_captions ") == 4
    assert "loss_offline" not in epochs(run)[0] and "loss_offline" in epochs(run)[1]
    every_two = aoq_project(folder, "every_two", candidates={"refresh_every": 2}, max_epoch=4)
    train(folder, every_two)
    assert lists_of(folder / "every_two")["epoch"] == 2


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


SHARED = {
    "base_loss": {"name": "infonce"},
    "aoq": {"offline": "shared", "pairs": False, "draws": 2, "distill": 1.0},
}


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


def test_a_run_whose_lists_are_gone_or_of_other_data_is_not_resumed(folder):
    content = aoq_project(folder, "gone", max_epoch=1)
    train(folder, content)
    [store] = stores_of(folder / "gone")
    store.rename(folder / "elsewhere")
    with pytest.raises(ItmError, match="do not exist; make them with lavis-itm mine"):
        train(folder, content, "run.resume_ckpt_path=auto", "run.max_epoch=2")
    meta = (folder / "elsewhere" / "meta.json").read_text()
    (folder / "elsewhere" / "meta.json").write_text(meta.replace('"n_captions": 120', '"n_captions": 121'))
    with pytest.raises(ItmError, match="mined from other data: n_captions is 121 there and 120 here"):
        train(folder, aoq_project(folder, "other", source="elsewhere"))


def test_lists_made_before_are_used_where_they_are(folder):
    train(folder, aoq_project(folder, "first", max_epoch=1))
    [store] = stores_of(folder / "first")
    content = aoq_project(folder, "second", source=store.relative_to(folder), max_epoch=1)
    train(folder, content)
    assert not (folder / "second" / "candidates").exists()
    train(folder, content, "run.resume_ckpt_path=auto", "run.max_epoch=2")
    assert lists_of(folder / "second") == {"history": [store.name], "epoch": 0}
    assert epochs(folder / "second")[0] == epochs(folder / "first")[0]


def test_a_new_run_from_an_aoq_checkpoint_mines_anew(folder):
    train(folder, aoq_project(folder, "before", max_epoch=1))
    start = {"finetuned": str(folder / "before" / "checkpoint_best.pth"), "load_finetuned": True}
    train(folder, aoq_project(folder, "after", source=None, model=start, max_epoch=1))
    assert lists_of(folder / "after")["history"] != lists_of(folder / "before")["history"]
    assert len(stores_of(folder / "after")) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": None}, "nothing to mine with: set model.candidates.source to a run folder of round one"),
        ({"source": "nowhere"}, "model.candidates.source: .*nowhere does not exist; give a run folder"),
        (
            {"source": "nowhere", "model": SHARED},
            "model.candidates.source: .*nowhere does not exist; give a run folder",
        ),
        ({"model": {"aoq": {"draw_captions": 99}}}, "draws from 99 captions are asked for, but the lists hold 9"),
        ({"candidates": {"filters": {"max_score": -2.0}}}, "have no mined captions, the first is caption 0; loosen"),
    ],
)
def test_what_cannot_be_trained_is_said(folder, keys, message, tmp_path):
    content = aoq_project(folder, "refused", **keys)
    content["run"]["output_dir"] = str(tmp_path)
    with pytest.raises(ItmError, match=message):
        train(tmp_path, content)


def test_lavis_s_own_runner_ends_in_a_sentence(folder, monkeypatch):
    for name in ("result_dir", "output_dir"):
        monkeypatch.delitem(registry.mapping["paths"], name, raising=False)
    content = aoq_project(folder, "stock")
    content["run"].update(runner="runner_base", lr_sched="linear_warmup_cosine_lr", min_lr=0, warmup_lr=0.01)
    content["run"].update(test_splits=[], train_splits=["train"], num_workers=0, weight_decay=0.0)
    content["run"]["output_dir"] = str(folder / "stock")
    with pytest.raises(ItmError, match=r"set run.runner: itm_runner"):
        train(folder, content)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_precomp(folder / "data", train=23)
    tests = str(Path(__file__).parents[1])
    places = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__).with_name("aoq_ranks.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
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
