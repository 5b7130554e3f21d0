"""What goes wrong around a run ends in a sentence and exit code 2, and nothing that was there is lost."""

import errno
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch

from lavis_itm_plugins import checkpoints
from lavis_itm_plugins.checkpoints import read_checkpoint, write_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners import folder as folder_module


def test_an_output_folder_below_a_file(refused, tmp_path):
    (tmp_path / "taken").write_text("mine")
    said = refused("--options", f"run.output_dir={tmp_path}/taken/runs")
    assert said == f"cannot write {tmp_path}/taken/runs/a: Not a directory; set run.output_dir elsewhere"
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_output_folder_without_permission(refused, project, monkeypatch):
    def forbidden(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(folder_module, "open", forbidden, raising=False)
    assert refused() == f"cannot write {project.folder}: Permission denied; set run.output_dir elsewhere"


def test_a_folder_that_holds_a_run(refused, train, project):
    train()
    before = (project.folder / "checkpoint_last.pth").read_bytes()
    assert refused() == f"{project.folder} holds a run already; go on with --resume, or choose another run.itm.run_name"
    assert (project.folder / "checkpoint_last.pth").read_bytes() == before


def test_a_folder_in_use_by_a_living_process(refused, train, project):
    project.folder.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, str(project.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for arguments in ([], ["--resume"]):
            said = refused(*arguments)
            assert said == f"run folder {project.folder} is in use by another process; wait for it, or choose another"
        holder.kill()
    train()


class TestWriting:
    def test_a_file_size_limit_leaves_the_old_checkpoint(self, tmp_path):
        path = tmp_path / "checkpoint_last.pth"
        write_checkpoint(path, {"model": torch.zeros(3)})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(ItmError, match=r"^cannot write .*checkpoint_last.pth: .*; free some space or set run"):
                write_checkpoint(path, {"model": torch.ones(100_000)}, keep=tmp_path / "previous.pth")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert read_checkpoint(path)["model"].tolist() == [0, 0, 0]
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint_last.pth"]

    @pytest.mark.parametrize("call", [3, 4])
    def test_a_full_disk_within_a_run(self, call, refused, train, project, monkeypatch):
        """Calls of fsync: a file and its folder for each checkpoint, the best and the last of each of two epochs."""
        stock, calls = os.fsync, []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) == 2 * call - 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            stock(descriptor)

        monkeypatch.setattr(checkpoints.os, "fsync", full)
        project.run["valid_splits"] = []
        said = refused()
        name = {3: "checkpoint_best.pth", 4: "checkpoint_last.pth"}[call]
        assert said.startswith(f"cannot write {project.folder / name}: No space left on device; free some space")
        assert read_checkpoint(project.folder / "checkpoint_last.pth")["train_state"]["epoch"] == 1
        assert not list(project.folder.glob(".*.tmp"))
        monkeypatch.undo()
        assert train("run.resume_ckpt_path=auto").state.epoch == 2


class TestReading:
    def test_a_checkpoint_cut_in_half(self, refused, train, project, caplog):
        lines = train().folder.metric_lines()
        last, previous = project.folder / "checkpoint_last.pth", project.folder / "checkpoint_previous.pth"
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        assert refused("--resume", str(last), config=False).startswith(f"checkpoint {last} is damaged or no checkpoint")
        assert train("run.resume_ckpt_path=auto").folder.metric_lines() == lines
        assert f"checkpoint {last} is damaged" in caplog.text and f"resumed {previous}: epoch 2, step 0" in caplog.text
        for path in (last, previous):
            path.write_bytes(b"")
        assert "can be used; start afresh with another run.itm.run_name" in refused("--resume")

    @pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
    @pytest.mark.parametrize("way", ["resume", "auto", "finetuned"])
    def test_a_pickled_object_is_refused_and_never_executed(self, form, way, refused, project, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        path = project.folder / "checkpoint_last.pth" if way == "auto" else tmp_path / "evil.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "plain pickle":
            path.write_bytes(pickle.dumps({"model": Evil()}))
        else:
            torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=form == "zip")
        arguments = {
            "resume": ["--resume", str(path)],
            "auto": ["--resume"],
            "finetuned": ["--options", f"model.finetuned={path}", "model.load_finetuned=true"],
        }
        said = refused(*arguments[way])
        assert ("can be used" in said) if way == "auto" else (f"checkpoint {path} " in said)
        assert not (tmp_path / "executed").exists()
        # the file does execute where nobody looks
        torch.load(path, weights_only=False) if form != "plain pickle" else pickle.loads(path.read_bytes())
        assert (tmp_path / "executed").exists()

    def test_no_run_at_all(self, refused, tmp_path):
        (tmp_path / "empty").mkdir()
        assert refused(config=False) == "--cfg-path is missing; give a YAML file, or --resume with a run folder"
        assert "give --cfg-path or a run folder" in refused("--resume", config=False)
        assert refused("--resume", f"{tmp_path}/none", config=False).endswith("give a run folder or a checkpoint")
        for config in (True, False):
            said = refused("--resume", f"{tmp_path}/empty", config=config)
            assert said.startswith(f"{tmp_path}/empty is no run folder (it has no config.yaml)")

    def test_weights_alone_cannot_be_resumed(self, refused, train, project):
        train()
        best = project.folder / "checkpoint_best.pth"
        assert refused("--resume", str(best), config=False).startswith(f"{best} holds weights alone; go on from")

    def test_other_data_another_model_another_step(self, refused, train, project, data, tmp_path):
        import tiny

        train("run.itm.save_every_steps=3")
        other = tiny.write_precomp(tmp_path / "other", train=25)
        resume = ["--resume", str(project.folder), "--options"]
        said = refused(*resume, f"datasets.itm_precomp.root={other}")
        assert said.endswith("was trained on other data; use the same captions and images to resume")
        said = refused(*resume, "model.embed_dim=8")
        assert f"{project.folder}/checkpoint_last.pth does not fit this model: " in said
        project.folder.joinpath("checkpoint_last.pth").unlink()
        said = refused(*resume, "run.batch_size_train=8")
        assert "was written within an epoch of 16 captions a step, and now a step has 8; choose run.batch_" in said
        said = refused(*resume, "run.seed=8")
        assert "was written within an epoch with run.seed=3, now it is 8; set it back" in said

    def test_weights_of_another_size_or_vocabulary(self, refused, train, project):
        from lavis_itm_plugins.encoders.vocabulary import Vocabulary
        from lavis_itm_plugins.matchers.vse import VseMatcher

        model = train()._model
        best = project.folder / "checkpoint_best.pth"
        said = refused("--options", f"model.finetuned={best}", "model.embed_dim=8", "run.itm.run_name=b")
        assert said.startswith(f"{best} does not fit this model: ")
        words = Vocabulary.from_captions(["quite another set of words"], min_count=1)
        with pytest.raises(ItmError, match=r"the checkpoint's vocabulary \(\d+ words\) differs from this model's"):
            VseMatcher(model.config, words).load_checkpoint(best)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("run.max_epoch=two", "run.max_epoch: expected a whole number, got 'two'"),
        ("run.max_epoch=1.5", "run.max_epoch: expected a whole number, got 1.5"),
        ("run.batch_size_train=0", "run.batch_size_train: 0 is out of range; give a value of at least 1"),
        ("run.amp=maybe", "run.amp: expected true or false, got 'maybe'"),
        ("run.valid_splits=val", "run.valid_splits: expected a list, got 'val'"),
        ("run.itm=3", "run.itm: expected a section of keys, got 3"),
        ("run.itm.clip_grad=[1]", "run.itm.clip_grad: expected a number, got [1]"),
        ("run.itm.on_nonfinite=hope", 'run.itm.on_nonfinite: unknown choice "hope"; did you mean stop?'),
        ("run.itm.patiense=3", "run.itm.patiense: unknown key; did you mean patience?"),
        ("model.embed_dim=-1", "model.embed_dim: -1 is out of range; give a value of at least 1"),
        ("model.image=[regions]", "model.image: expected a section of keys, got ['regions']"),
        ("datasets.itm_precomp.root=[1]", "datasets.itm_precomp.root: expected text, got [1]"),
        ("run=3", "run: expected a section of keys, got 3"),
    ],
)
def test_a_wrong_type_names_file_key_and_value(option, said, refused, tmp_path):
    assert refused("--options", option).startswith(f"{tmp_path}/project.yaml: {said}")
    assert not (tmp_path / "runs").exists()
