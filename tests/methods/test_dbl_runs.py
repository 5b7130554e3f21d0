"""itm_dbl through the runner: plain training inside a peer run, stop, kill and resume, two ranks, LAVIS's own flow."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest
import tiny
import torch
from lavis.common.registry import registry
from methods.runs import plain_run, train
from runners.compare import assert_same_runs
from runners.farm import Farm
from scripts import run_script

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.evaluating import evaluate_checkpoint, open_run
from lavis_itm_plugins.evaluation import ensemble_scores, retrieval_metrics
from lavis_itm_plugins.matchers.encode import captions_of
from lavis_itm_plugins.runners import loop
from lavis_itm_plugins.train import run_training

pytestmark = pytest.mark.usefixtures("as_before")
SCENARIOS = ("momentum", "frozen", "peer")
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and a plain run of the triplet loss, `plain`, which serves as an anchor."""
    return plain_run(tmp_path_factory.mktemp("dbl"))


def dbl_project(folder, scenario, name, itm=None, region_drop=0.0, dbl=None, **run):
    content = tiny.project(folder / "data", folder, itm={"run_name": name, **(itm or {})}, **run)
    content["datasets"]["itm_precomp"]["region_drop"] = region_drop
    settings = {**({"anchor": str(folder / "plain")} if scenario == "frozen" else {}), **(dbl or {})}
    content["model"] = {"arch": "itm_dbl", "model_type": scenario, "matcher": content["model"], "dbl": settings}
    return content


def weights(path, prefix=""):
    state = read_checkpoint(path)["model"]
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and torch.is_tensor(v)}


def test_branch_0_of_a_peer_run_is_a_plainly_trained_matcher(folder):
    """Bit for bit: dropout, regions left out, order, clipping and rates are those of `itm_vse` with that seed."""
    run = {"itm": {"clip_grad": 0.5}, "warmup_steps": 3, "weight_decay": 0.1}
    content = tiny.project(folder / "data", folder, **{**run, "itm": {"run_name": "alone", "clip_grad": 0.5}})
    content["model"]["base_loss"] = {"name": "triplet"}
    content["datasets"]["itm_precomp"]["region_drop"] = 0.2
    train(folder, content)
    train(folder, dbl_project(folder, "peer", "together", region_drop=0.2, dbl={"branches": 3}, **run))
    alone = weights(folder / "alone" / "checkpoint_last.pth")
    together = folder / "together" / "checkpoint_last.pth"
    assert all(torch.equal(value, alone[name]) for name, value in weights(together, "peers.0.").items())
    assert any(not torch.equal(value, alone[name]) for name, value in weights(together, "matcher.").items())


def test_without_weight_a_momentum_run_is_a_plain_one(folder):
    train(folder, dbl_project(folder, "momentum", "weightless", dbl={"weight": 0.0}))
    plain = weights(folder / "plain" / "checkpoint_last.pth")
    stored = weights(folder / "weightless" / "checkpoint_last.pth", "matcher.")
    assert all(torch.equal(value, plain[name]) for name, value in stored.items())


def stopped_and_resumed(folder, scenario, monkeypatch, **keys):
    """The folders of a run, and of the same run stopped by a signal within its second epoch."""
    name = f"{scenario}_whole"
    train(folder, dbl_project(folder, scenario, name, **keys))
    stock, calls = loop._Stepper.accumulate, []

    def accumulate(*given):
        calls.append(1)
        if len(calls) == STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*given)

    content = dbl_project(folder, scenario, f"{scenario}_stopped", **keys)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Stepper, "accumulate", accumulate)
        train(folder, content)
    train(folder, content, "run.resume_ckpt_path=auto")
    return folder / f"{scenario}_stopped", folder / name


# frozen: the cached run below goes on exactly too
@pytest.mark.parametrize("scenario", ["momentum", pytest.param("frozen", marks=pytest.mark.full), "peer"])
def test_a_stopped_run_goes_on_exactly(scenario, folder, monkeypatch):
    """With dropout of every kind, a weight and a momentum that move, an average of the weights, accumulation."""
    dbl = {"weight_warmup": 1.5, "momentum_warmup": 0.5} if scenario == "momentum" else {"weight_warmup": 1.5}
    keys = {"region_drop": 0.2, "dbl": dbl, "accum_grad_iters": 3, "itm": {"ema": 0.9}}
    assert_same_runs(*stopped_and_resumed(folder, scenario, monkeypatch, **keys))


def test_the_cache_of_a_frozen_anchor_is_filled_again_on_resume(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    keys = {"dbl": {"cache": "always"}, "region_drop": 0.2}
    folder = folder / "cached"
    folder.mkdir()
    for name in ("data", "plain"):
        (folder / name).symlink_to(folder.parent / name)
    assert_same_runs(*stopped_and_resumed(folder, "frozen", monkeypatch, **keys))
    assert caplog.text.count("the anchor's vectors of 24 images and 120 captions are kept") == 3


def test_a_frozen_anchor_is_cached_only_where_nothing_varies(folder, caplog):
    caplog.set_level(logging.INFO)
    for name, region_drop, cache, kept in [
        ("still", 0.0, "auto", True),
        ("varied", 0.2, "auto", False),
        ("live", 0.0, "never", False),
    ]:
        caplog.clear()
        train(folder, dbl_project(folder, "frozen", name, region_drop=region_drop, dbl={"cache": cache}, max_epoch=1))
        assert ("are kept" in caplog.text) == kept
    metrics = [json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("still", "live")]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)


def test_the_anchor_moves_once_for_each_step_taken(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    stock = loop._Stepper.accumulate
    calls = []

    def accumulate(stepper, samples, epoch):
        calls.append(1)
        # the second group of three batches is dropped
        if len(calls) == 5:
            stepper.sound = False
        return stock(stepper, samples, epoch)

    monkeypatch.setattr(loop._Stepper, "accumulate", accumulate)
    runner = train(folder, dbl_project(folder, "momentum", "grouped", accum_grad_iters=3))
    # groups of 3, 3 and 2 batches in each of two epochs, and one was dropped
    assert int(runner._model.momentum_anchor.updates) == 5
    assert "dbl: momentum 0.9995 to 1: half of it is new never in this run" in caplog.text
    line = json.loads(runner.folder.metric_lines()[0])
    assert {"positive_gain", "negative_gain", "active_hinges", "masked_negatives", "momentum"} < line.keys()
    assert sum("dbl: the boost is" in record.message for record in caplog.records) == 2


def test_what_is_evaluated_and_that_it_needs_no_anchor(folder):
    content = dbl_project(folder, "peer", "peers")
    train(folder, content)
    run = folder / "peers"
    rsum = {
        name: evaluate_checkpoint(
            run / "config.yaml", run / "checkpoint_best.pth", options=[f"run.itm.eval_branch={name}"]
        ).metrics["rsum"]
        for name in ("target", "0", "1", "average")
    }
    assert rsum["target"] == rsum["1"] != rsum["0"]
    opened = open_run(run / "config.yaml", run / "checkpoint_best.pth")
    loader = opened.loader(opened.default_split())
    scores = [opened.model.branch(number).compute_sim_matrix(loader)[0] for number in range(2)]
    expected = retrieval_metrics(ensemble_scores(scores), captions_of(loader.dataset)[1])
    assert rsum["average"] == pytest.approx(expected["rsum"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth", split="val").metrics["rsum"] == max(
        line["rsum"] for line in lines if line["split"] == "val"
    )
    # the run itself can be told to choose its best by another branch
    train(folder, dbl_project(folder, "peer", "first", itm={"eval_branch": 0}))
    plain = [json.loads(line) for line in (folder / "plain" / "metrics.jsonl").read_text().splitlines()]
    first = [json.loads(line) for line in (folder / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [line["rsum"] for line in first if "rsum" in line] == [line["rsum"] for line in plain if "rsum" in line]


def test_a_frozen_run_is_evaluated_without_its_anchor_but_not_resumed(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    (tmp_path / "plain").mkdir()
    best = (folder / "plain" / "checkpoint_best.pth").read_bytes()
    (tmp_path / "plain" / "checkpoint_best.pth").write_bytes(best)
    content = dbl_project(tmp_path, "frozen", "run", max_epoch=1)
    train(tmp_path, content)
    (tmp_path / "plain" / "checkpoint_best.pth").unlink()
    run = tmp_path / "run"
    assert evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth").metrics["rsum"] > 0
    assert main(["train", "--resume", str(run)]) == 2


def test_lavis_s_own_runner_trains_it(folder, monkeypatch):
    """Without `itm_runner` there are no hooks before training; the anchor still moves after each step."""
    # LAVIS refuses a second run in one process, and leaves out the last, smaller batch
    for name in ("result_dir", "output_dir"):
        monkeypatch.delitem(registry.mapping["paths"], name, raising=False)
    content = dbl_project(folder, "momentum", "stock")
    content["run"].update(runner="runner_base", lr_sched="linear_warmup_cosine_lr", min_lr=0, warmup_lr=0.01)
    content["run"]["output_dir"] = str(folder / "stock")
    content["run"].update(test_splits=[], train_splits=["train"], num_workers=0, weight_decay=0.0)
    path = tiny.write_project(folder / "stock.yaml", content)
    runner = run_training(path)
    assert int(runner.unwrap_dist_model(runner.model).momentum_anchor.updates) == 2 * (STEPS - 1)


def test_the_command_trains_a_frozen_run(folder, capsys):
    path = tiny.write_project(folder / "command.yaml", dbl_project(folder, "frozen", "command", max_epoch=1))
    assert main(["train", "--cfg-path", str(path)]) == 0
    assert (folder / "command" / "checkpoint_best.pth").exists()
    assert main(["train", "--cfg-path", str(path), "--options", "model.dbl.form=absolut"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith('model.dbl.form: unknown choice "absolut"; did you mean absolute?')


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_precomp(folder / "data", train=23)
    run_script("methods/dbl_ranks.py", folder)
    return folder


@pytest.mark.parametrize("scenario", [*SCENARIOS, "cached", "boosted_peer"])
def test_two_ranks_train_as_one_process(ranks, scenario):
    one, two = (torch.load(ranks / f"{scenario}_{size}.pt") for size in (1, 2))
    assert one["weights"].keys() == two["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-6, atol=1e-9, msg=name)
    for lines in zip(two["metrics"].splitlines(), one["metrics"].splitlines(), strict=True):
        metrics, reference = map(json.loads, lines)
        assert metrics.pop("split") == reference.pop("split")
        assert metrics == pytest.approx(reference, rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_killed_run_goes_on_exactly(scenario, folder, tmp_path):
    farm = Farm()
    keys = {"region_drop": 0.2, "itm": {"save_every_steps": 3}, "num_workers": 2}
    try:
        for name, kill in (("killed", True), ("whole", False)):
            content = dbl_project(folder, scenario, f"{scenario}_{name}_for_real", **keys)
            content["run"]["itm"]["save_every_steps"] = 3
            path = tiny.write_project(tmp_path / f"{name}.yaml", content)
            arguments = ["train", "--cfg-path", str(path)]
            event = {"event": "batch", "call": STEPS + 6} if kill else {}
            code, output = farm.run(arguments, tmp_path / "log", **event)
            assert code == (-signal.SIGKILL if kill else 0), output
        killed = folder / f"{scenario}_killed_for_real"
        code, output = farm.run(["train", "--resume", str(killed)], tmp_path / "log")
        assert code == 0 and "epoch 2, step 3" in output, output
    finally:
        farm.close()
    assert_same_runs(killed, folder / f"{scenario}_whole_for_real")
