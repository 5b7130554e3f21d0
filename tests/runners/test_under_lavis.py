"""LAVIS's own runner and task train our models, and our runner goes on from the checkpoint that they leave."""

import json

import pytest
import torch

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError


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
