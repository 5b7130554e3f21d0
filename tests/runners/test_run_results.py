"""What a run leaves can be had again, is what its settings ask for, and lies in its folder; what is missing is said."""

import json

import pytest
import tiny
import torch

from lavis_itm_plugins.checkpoints import read_checkpoint


def test_mixed_precision_on_a_cpu_trains_and_stays_finite(train):
    runner = train("run.amp=true")
    assert runner.amp_dtype == torch.bfloat16 and runner.scaler is None
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in runner._model.parameters())
    half, whole = (json.loads(line)["loss"] for line in (runner.folder.metric_lines()[0], full_precision(train)[0]))
    assert half != whole and half == pytest.approx(whole, rel=0.05)


def full_precision(train):
    return train("run.itm.run_name=full").folder.metric_lines()


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(train):
    first, again = (train(f"run.itm.run_name={name}") for name in "ab")
    assert first.folder.metrics.read_text() == again.folder.metrics.read_text()
    other = train("run.itm.run_name=c", "run.seed=4")
    assert other.folder.metrics.read_text() != first.folder.metrics.read_text()


def test_the_average_follows_its_formula_and_is_what_is_scored_and_kept(train, monkeypatch):
    """average = decay * average + (1 - decay) * weights after each step, from the weights after the first."""
    from lavis_itm_plugins.runners.saving import CheckpointKeeper

    stock, expected = CheckpointKeeper.after_step, {}

    def after_step(keeper, epoch, taken):
        new = {name: value.detach().clone() for name, value in keeper.runner._model.named_parameters()}
        for name, value in new.items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in expected else value
        stock(keeper, epoch, taken)

    monkeypatch.setattr(CheckpointKeeper, "after_step", after_step)
    runner = train("run.itm.ema=0.9", "run.max_epoch=1")
    stored = read_checkpoint(runner.folder.best)["model"]
    for name, value in expected.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)
    last = read_checkpoint(runner.folder.last)["model"]
    assert any(not torch.equal(last[name], stored[name]) for name in expected)
    # tested with the same weights
    assert all(torch.equal(value, stored[name]) for name, value in runner._model.named_parameters())


def test_without_validation_the_best_is_the_last_and_the_log_says_so(train, project, caplog):
    project.run["valid_splits"] = []
    runner = train()
    assert "no validation split: checkpoint_best is the last epoch's" in caplog.text
    best, last = (read_checkpoint(path)["model"] for path in (runner.folder.best, runner.folder.last))
    assert all(torch.equal(best[name], value) for name, value in last.items() if torch.is_tensor(value))


def test_a_split_that_is_not_there_is_said(train, project, tmp_path, caplog):
    root = tiny.write_precomp(tmp_path / "data")
    train(f"datasets.itm_precomp.root={root}")
    assert "run.test_splits names test, which the data do not have" in caplog.text


@pytest.mark.parametrize(("sink", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_sink_without_its_package_says_what_to_install(sink, package, refused, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    said = refused("--options", f"run.itm.{sink}={'true' if sink == 'tensorboard' else 'mine'}")
    assert said == f'run.itm.{sink} needs {package}; run: pip install "lavis-itm-plugins[{package}]"'


def test_tensorboard_gets_every_number(train, project):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner = train("run.itm.tensorboard=true")
    events = EventAccumulator(str(runner.folder.path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    seen = [event.value for event in events.Scalars("val/rsum")]
    assert seen == pytest.approx([line["rsum"] for line in lines if line["split"] == "val"])


def test_the_run_folder_can_be_run_again(train, project):
    """Its config.yaml is the whole project: another run of it gives the same numbers."""
    runner = train()
    names = {"config.yaml", "metrics.jsonl", "environment.json", "vocabulary.json", "log.txt", ".lock"}
    assert {path.name for path in runner.folder.path.iterdir()} >= names
    environment = json.loads(runner.folder.environment.read_text())
    assert environment["packages"]["salesforce-lavis"] == "1.0.2" and environment["seed"] == 3
    from lavis_itm_plugins.train import run_training

    again = run_training(runner.folder.config, ["run.itm.run_name=again"])
    assert again.folder.metric_lines() == runner.folder.metric_lines()


def test_resume_alone_takes_the_last_run_of_the_same_configuration(train, project):
    project.itm.clear()
    first = train()
    other = train("run.init_lr=0.02")
    resumed = train("run.resume_ckpt_path=auto", "run.max_epoch=3")
    assert resumed.folder.path == first.folder.path and resumed.state.epoch == 3
    fresh = train("run.resume_ckpt_path=auto", "run.init_lr=0.03")
    assert fresh.folder.path not in (first.folder.path, other.folder.path)
