"""The loop and the runner: accumulation, clipping, rates, precision, averages; and LAVIS's own runner and task."""

import json
import math

import pytest
import tiny
import torch
from runners.stubs import Stub, steps

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.loop import Epoch, set_rate
from lavis_itm_plugins.runners.schedulers import CosineSchedule, StepSchedule
from lavis_itm_plugins.runners.watch import FiniteWatch


def test_accumulated_gradients_are_those_of_the_joined_batch():
    batches = [torch.tensor([float(n), n + 2.0]) for n in range(5)]
    one, several = Stub(), Stub()
    steps(one, [torch.cat(batches[:2]), torch.cat(batches[2:4]), batches[4]])
    steps(several, batches, accumulate=2)
    # the last group has one batch, and counts as much as a whole one
    torch.testing.assert_close(several.weight, one.weight)
    torch.testing.assert_close(several.other, one.other)
    assert several.hooks == one.hooks == 3


def test_groups_are_clipped_apart():
    model = Stub()
    steps(model, [torch.tensor([5.0])], clip=0.5)
    # a slope of 5 is cut to 0.5, the other group's slope of 0.1 stays
    assert model.weight.item() == pytest.approx(0.5) and model.other.item() == pytest.approx(0.9)


class FakeScaler:
    """A gradient scaler whose first step overflows, as the first of float16 often does."""

    def __init__(self):
        self.value, self.overflow = 8.0, True

    def scale(self, loss):
        return loss * self.value

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.value

    def step(self, optimizer):
        if not self.overflow:
            optimizer.step()

    def update(self):
        self.value /= 2 if self.overflow else 1
        self.overflow = False

    def get_scale(self):
        return self.value


def test_a_step_that_the_scaler_skips_calls_no_hook():
    model, seen = Stub(), []
    steps(model, [torch.ones(1)] * 3, scaler=FakeScaler(), after_step=lambda epoch, taken: seen.append(taken))
    assert seen == [False, True, True] and model.hooks == 2
    # unscaled before the step: two steps of slope 1
    assert model.weight.item() == pytest.approx(-1.0)


class FloatScaler(FakeScaler):
    """A gradient scaler that looks at the gradients, as torch's does."""

    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.overflow = not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_bad_loss_moves_nothing_under_a_scaler_either():
    model = Stub()
    bad = torch.full((1,), torch.inf)
    with pytest.raises(ItmError, match="20 skipped steps in a row"):
        steps(model, [bad] * 30, scaler=FloatScaler(), watch=FiniteWatch("skip"))
    assert model.weight.item() == 1 and model.hooks == 0


def test_a_gradient_that_is_never_finite_stops_a_scaled_run():
    model = Stub()
    with pytest.raises(ItmError, match="the gradient is not finite at epoch 1, step 20, 20 times in a row"):
        steps(model, [-torch.ones(1)] * 30, scaler=FloatScaler())
    assert model.weight.item() == 1


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "itm_cosine_lr", "itm_step_lr"])
def test_factors_of_groups_hold_under_every_schedule(name):
    from lavis.common.registry import registry

    from lavis_itm_plugins import register

    register()
    model = Stub()
    groups = [{"params": [model.weight]}, {"params": [model.other], "lr_scale": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = registry.get_lr_scheduler_class(name)(
        optimizer=optimizer, max_epoch=4, min_lr=0.01, init_lr=0.2, decay_rate=0.5, warmup_start_lr=0.0, warmup_steps=2
    )
    for epoch in range(4):
        for step in range(3):
            set_rate(optimizer, scheduler, Epoch(epoch, 3, step))
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates[1] == pytest.approx(0.1 * rates[0])


def rates(scheduler, epochs, steps_per_epoch):
    scheduler.steps_per_epoch = steps_per_epoch
    for epoch in range(epochs):
        for step in range(steps_per_epoch):
            scheduler.step(cur_epoch=epoch, cur_step=step)
            yield scheduler.optimizer.param_groups[0]["lr"]


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_step_schedule_drops_at_its_milestones(monkeypatch):
    monkeypatch.setattr("lavis_itm_plugins.runners.schedulers.run_setting", lambda name: {"milestones": [1, 3]})
    schedule = StepSchedule(optimizer(), max_epoch=4, min_lr=0.0, init_lr=1.0, decay_rate=0.5)
    assert list(rates(schedule, 4, 2)) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    schedule = StepSchedule(optimizer(), max_epoch=4, min_lr=0.0, init_lr=1.0)
    assert list(rates(schedule, 4, 1)) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_schedule_warms_up_and_moves_with_every_step():
    schedule = CosineSchedule(optimizer(), max_epoch=2, min_lr=0.1, init_lr=1.1, warmup_start_lr=0.5, warmup_steps=3)
    expected = [0.5, 0.7, 0.9, *(0.1 + 0.5 * (1 + math.cos(math.pi * done / 8)) for done in range(3, 8))]
    assert list(rates(schedule, 2, 4)) == pytest.approx(expected)


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


class TestUnderLavis:
    """LAVIS's own runner and task with our model, and what it leaves to resume from."""

    @pytest.fixture
    def output(self, project, tmp_path):
        """The one folder that LAVIS's runner made."""
        project.run.update(runner="runner_base", lr_sched="linear_warmup_cosine_lr", min_lr=0.0, warmup_lr=0.0)
        # LAVIS has no defaults for these
        project.run.update(test_splits=[], weight_decay=0.05, num_workers=0, train_splits=["train"])
        project.run.pop("itm")
        from lavis.common.registry import registry

        # LAVIS's runner refuses a second run in one process
        for name in ("result_dir", "output_dir"):
            registry.mapping["paths"].pop(name, None)

        def find():
            [folder] = {path.parent for path in (tmp_path / "runs").rglob("checkpoint_best.pth")}
            return folder

        return find

    @pytest.mark.parametrize("task", ["retrieval", "itm_retrieval"])
    def test_its_runner_trains_and_evaluates_our_model(self, task, train, output):
        train(f"run.task={task}")
        lines = [json.loads(line) for line in (output() / "log.txt").read_text().splitlines() if line.startswith('{"')]
        validated = [line for line in lines if "val_agg_metrics" in line]
        assert len(validated) == 2 and all(0 <= line["val_txt_r1"] <= 100 for line in validated)
        assert ("val_rsum" in validated[0]) == (task == "itm_retrieval")

    def test_its_checkpoint_is_resumed_with_a_warning(self, train, output, project, monkeypatch, caplog):
        from lavis_itm_plugins.matchers.vse import VseMatcher

        stock = VseMatcher.build

        def build(matcher):
            stock(matcher)
            matcher.text_encoder.words.requires_grad_(False)

        monkeypatch.setattr(VseMatcher, "build", build)
        theirs = train("run.task=retrieval")
        path = output() / "checkpoint_best.pth"
        stored = read_checkpoint(path)
        assert not any(name.startswith("text_encoder.words.") for name in stored["model"])
        project.run.update(runner="itm_runner", itm={"run_name": "ours"}, max_epoch=stored["epoch"] + 2)
        ours = load_without_training(train, monkeypatch, f"run.resume_ckpt_path={path}")
        frozen = sum(not parameter.requires_grad for parameter in ours._model.parameters())
        said = f"{path} is LAVIS's own: it lacks the random state and the best score, {frozen} frozen tensors"
        assert frozen and said in caplog.text
        assert ours.state.epoch == stored["epoch"] + 1
        weights, names = ours._model.state_dict(), dict(ours._model.named_parameters())
        for name, value in stored["model"].items():
            assert not torch.is_tensor(value) or torch.equal(weights[name], value), name
        order = [parameter for group in theirs.optimizer.param_groups for parameter in group["params"]]
        by_name = {id(parameter): name for name, parameter in theirs._model.named_parameters()}
        for number, entry in stored["optimizer"]["state"].items():
            moments = ours.optimizer.state[names[by_name[id(order[number])]]]
            assert torch.equal(moments["exp_avg"], entry["exp_avg"]) and moments["step"] == entry["step"]

    def test_its_checkpoint_of_another_model_is_refused(self, train, output, project, refused):
        train("run.task=retrieval")
        path = output() / "checkpoint_best.pth"
        project.run.update(runner="itm_runner", itm={"run_name": "ours"})
        for option in ("model.embed_dim=8", "model.image.projection=linear"):
            said = refused("--resume", str(path), "--options", option)
            assert said.startswith(f"checkpoint {path} ") and ("does not fit" in said or "of another model" in said)


def load_without_training(train, monkeypatch, *options):
    """The runner as it stands when its first epoch would begin."""
    from lavis_itm_plugins.runners.runner import ItmRunner

    runners = []

    def stop(runner, _epoch):
        runners.append(runner)
        raise ItmError("far enough")

    monkeypatch.setattr(ItmRunner, "_one_epoch", stop)
    with pytest.raises(ItmError, match="far enough"):
        train(*options)
    return runners[0]
