"""A run that is killed at any moment and resumed equals one that never stopped, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from runners.compare import assert_same_runs

STEPS = 8  # of an epoch: 120 captions in batches of 16
EPOCHS = 3

# kill point -> what is watched, which call of it kills, and where the run then goes on
KILLS = {
    "before the first step": ("batch", 1, "starting afresh"),
    "mid-epoch, after a checkpoint": ("batch", STEPS + 6, "last.pth: epoch 2, step 3"),
    "epoch boundary, before validation": ("metrics", 1, "last.pth: epoch 1, step 6"),
    "epoch boundary, after validation": ("metrics", 4, "last.pth: epoch 2, step 6"),
    "while checkpoint_best is written": ("write", 3, "last.pth: epoch 1, step 6"),
    "while checkpoint_last is written": ("write", 4, "last.pth: epoch 1, step 6"),
    "between the renames of checkpoint_last": ("rename", 3, "previous.pth: epoch 1, step 6"),
    "in the last epoch": ("batch", 2 * STEPS + 2, "last.pth: epoch 3, step 0"),
    "in the final test": ("metrics", 2 * EPOCHS + 1, "last.pth is of a finished run"),
}
DIAGONAL = {
    ("before the first step", 0),
    ("mid-epoch, after a checkpoint", 2),
    ("epoch boundary, before validation", 2),
    ("while checkpoint_last is written", 0),
    ("between the renames of checkpoint_last", 0),
    ("in the last epoch", 2),
}


def cases():
    for kill in KILLS:
        for workers in (0, 2):
            marks = [] if (kill, workers) in DIAGONAL else [pytest.mark.full]
            yield pytest.param(kill, workers, marks=marks, id=f"{kill}-{workers} workers".replace(" ", "_"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A project with dropout of every kind, a moving average and checkpoints within epochs; its output folder."""
    folder = tmp_path_factory.mktemp("kill")
    content = tiny.project(
        data, folder, max_epoch=EPOCHS, test_splits=["test"], itm={"save_every_steps": 3, "ema": 0.9, "patience": 9}
    )
    content["datasets"]["itm_precomp"]["region_drop"] = 0.2
    tiny.write_project(folder / "project.yaml", content)
    return folder


def command(runs: Path, name: str, workers: int, *more: str) -> list[str]:
    options = ["--options", f"run.itm.run_name={name}", f"run.num_workers={workers}"]
    return ["train", "--cfg-path", str(runs / "project.yaml"), *more, *options]


@pytest.fixture(scope="module")
def reference(runs, farm):
    """Folder of the run that never stopped, by number of workers."""
    made = {}

    def get(workers: int) -> Path:
        if workers not in made:
            name = f"reference_{workers}"
            code, output = farm.run(command(runs, name, workers), runs / "log")
            assert code == 0, output
            made[workers] = runs / name
        return made[workers]

    return get


@pytest.mark.parametrize(("kill", "workers"), cases())
def test_a_killed_run_goes_on_exactly(kill, workers, runs, farm, reference, request):
    event, call, goes_on = KILLS[kill]
    name = request.node.callspec.id
    code, output = farm.run(command(runs, name, workers), runs / "log", event=event, call=call)
    assert code == -signal.SIGKILL, output
    # at once: the lock and a half-written file of the killed process, and workers that live on, are no obstacle
    code, output = farm.run(["train", "--resume", str(runs / name)], runs / "log")
    assert code == 0, output
    assert goes_on in output
    assert_same_runs(runs / name, reference(workers))


@pytest.mark.parametrize(
    ("stop", "workers"),
    [("SIGTERM", 0), ("GROUP", 2), pytest.param("SIGINT", 0, marks=pytest.mark.full)],
)
def test_a_signal_saves_after_the_step_and_exits(stop, workers, runs, farm, reference):
    name = f"signal_{stop}"
    code, output = farm.run(command(runs, name, workers), runs / "log", event="batch", call=STEPS + 5, stop=stop)
    number = signal.SIGINT if stop == "SIGINT" else signal.SIGTERM
    assert code == 128 + number, output
    assert "Traceback" not in output
    assert f"stopped by signal {number:d}; saved {runs / name / 'checkpoint_last.pth'}, go on with --resume" in output
    code, output = farm.run(["train", "--resume", str(runs / name)], runs / "log")
    assert code == 0, output
    # five of the second epoch's steps were saved, though a checkpoint within an epoch is due at every third
    assert "epoch 2, step 5" in output
    assert_same_runs(runs / name, reference(workers))


def test_two_kills_and_a_damaged_checkpoint_in_one_run(runs, farm, reference):
    name = "unlucky"
    for call in (STEPS + 6, 9):
        code, output = farm.run(command(runs, name, 0, "--resume"), runs / "log", event="batch", call=call)
        assert code == -signal.SIGKILL, output
    last = runs / name / "checkpoint_last.pth"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    code, output = farm.run(command(runs, name, 0, "--resume"), runs / "log")
    assert code == 0, output
    assert "checkpoint_last.pth is damaged or no checkpoint" in output and "trying the one before" in output
    assert_same_runs(runs / name, reference(0))
    # set aside: as checkpoint_previous it would have taken the place of the good one
    assert (runs / name / "checkpoint_last.pth.unusable").exists()


def test_the_real_command_killed_and_resumed(runs, farm):
    """The console script itself, killed from outside at no particular moment."""
    epochs = "run.max_epoch=25"
    code, output = farm.run([*command(runs, "long", 0), epochs], runs / "log")
    assert code == 0, output
    script = str(Path(sys.executable).with_name("lavis-itm"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [script, *command(runs, "console", 0), epochs]
    with open(runs / "console.log", "w") as log:
        running = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
    metrics = runs / "console" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 6):
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL, (runs / "console.log").read_text()
    done = subprocess.run(
        [script, "train", "--resume", str(runs / "console")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert_same_runs(runs / "console", runs / "long")
