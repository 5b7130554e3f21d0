"""Losses that are not finite, networks that collapse, runs that no longer get better."""

import json

import numpy as np
import pytest
import tiny

from lavis_itm_plugins.errors import ItmError


@pytest.fixture
def features(project, tmp_path):
    """`features(split, change)`: this test's own data, with a split's features changed in place."""
    root = tiny.write_precomp(tmp_path / "data")
    project.content["datasets"]["itm_precomp"]["root"] = str(root)

    def change(split, values, rows=slice(None)):
        array = np.load(root / f"{split}_ims.npy")
        array[rows] = values
        np.save(root / f"{split}_ims.npy", array)

    return change


def test_nan_stops_with_advice_and_leaves_the_run_whole(features, refused, project):
    features("train", np.nan, rows=3)
    said = refused()
    assert said.startswith("the loss is nan at epoch 1, step ")
    assert "lavis-itm data verify" in said and said.endswith("run.itm.on_nonfinite=skip leaves such steps out")
    assert (project.folder / "config.yaml").exists()


def test_nan_steps_are_left_out_and_counted(features, train, caplog):
    features("train", np.nan, rows=3)
    runner = train("run.itm.on_nonfinite=skip")
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    skipped = [line["skipped"] for line in lines if line["split"] == "train"]
    # five captions, each once an epoch, in one to five batches
    assert 1 <= skipped[0] <= 5 and skipped[0] < skipped[1] <= 10
    assert caplog.text.count("step skipped") == skipped[1] == runner.state.skipped
    assert all(np.isfinite(line["loss"]) for line in lines if line["split"] == "train")
    assert all(parameter.isfinite().all() for parameter in runner._model.parameters())


def test_the_count_of_skipped_steps_survives_a_resume(features, train):
    features("train", np.nan, rows=3)
    whole = train("run.itm.on_nonfinite=skip", "run.max_epoch=3", "run.lr_sched=itm_step_lr").folder.metric_lines()
    train("run.itm.on_nonfinite=skip", "run.itm.run_name=b", "run.lr_sched=itm_step_lr")
    resumed = train(
        *("run.itm.on_nonfinite=skip", "run.itm.run_name=b", "run.max_epoch=3", "run.lr_sched=itm_step_lr"),
        "run.resume_ckpt_path=auto",
    )
    assert resumed.folder.metric_lines() == whole


def test_too_many_skipped_steps_in_a_row_stop(features, refused):
    features("train", np.nan, rows=slice(1, None))
    said = refused("--options", "run.itm.on_nonfinite=skip", "run.max_epoch=5")
    assert said.startswith("the loss is nan at epoch 3, step 4, after 20 skipped steps in a row; lower run.init_lr")


def test_collapse_warns_or_stops(features, train, refused, caplog):
    features("dev", 1.0)
    train()
    assert "the network has collapsed: images have a mean cosine of 1.0000 with each other. Try" in caplog.text
    said = refused("--options", "run.itm.on_collapse=stop", "run.itm.run_name=b")
    assert said.startswith("the network has collapsed") and "base_loss.warmup_epochs=1" in said


def test_a_network_that_learns_does_not_warn(train, caplog):
    train()
    assert "collapsed" not in caplog.text


def test_early_stopping_and_its_resume(train, project, caplog):
    """At no learning rate nothing gets better: the first epoch is the best, and two more are waited for."""
    project.run.update(init_lr=1e-12, max_epoch=9, lr_sched="itm_step_lr")
    project.itm.update(patience=2)
    project.model["image"]["dropout"] = project.model["text"]["dropout"] = 0.0
    runner = train()
    assert "stopped early: no better rsum for 2 epochs" in caplog.text
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    assert [(line["epoch"], line["split"]) for line in lines if line["split"] != "train"] == [
        *((epoch, "val") for epoch in (1, 2, 3)),
        (1, "test"),
    ]
    again = train("run.resume_ckpt_path=auto")
    assert again.folder.metric_lines() == runner.folder.metric_lines()
    assert train("run.resume_ckpt_path=auto", "run.itm.patience=3").state.epoch == 4


def test_a_gradient_that_is_not_finite_is_seen_without_clipping(monkeypatch):
    import torch
    from runners.stubs import Stub, steps

    model = Stub()
    before = model.weight.detach().clone()
    with pytest.raises(ItmError, match="the gradient norm is nan at epoch 1, step 2"):
        steps(model, [torch.ones(4), torch.full((4,), -1.0)], clip=None)
    assert not torch.equal(model.weight, before) and model.weight.isfinite().all()
