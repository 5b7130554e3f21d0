"""Runs of itm_coder for test_coder_runs.py, in forked processes of one that has imported LAVIS.

`coder_runs.py FOLDER`: two epochs in float64 on one and on two ranks, and a run that is killed within an epoch and goes
on, beside one that never stopped.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from runners import ranks
from runners.farm import EVENTS, at_call, send

CODER = {
    "dictionary": {"size": 40, "momentum": 0.9},
    "concept": {"min_count": 1, "size": 12, "word_dim": 8, "conceptnet": "scenes"},
    "labels": {"prototypes": 6, "extra_rows": 10},
    "dcl": {"intra_weight": 0.1},
    "scored": "best",
}


def project(folder: Path, name: str, dropout: float, **run: Any) -> Path:
    """A project with the same global batch on any number of ranks; 115 captions make a last batch of seven."""
    size = ranks.size()
    options = {"batch_size_train": ranks.GLOBAL_BATCH // size, "batch_size_eval": 3, "use_dist_eval_sampler": True}
    content = tiny.project(folder / "data", folder / "runs", **options, **run)
    content["run"].setdefault("itm", {})["run_name"] = f"{name}_{size}"
    matcher = {key: content["model"][key] for key in ("arch", "model_type", "embed_dim", "min_count", "image", "text")}
    matcher["image"]["dropout"] = dropout
    matcher["text"].update(dropout=dropout, output_dropout=dropout)
    content["model"] = {"arch": "itm_coder", "model_type": "full", "matcher": matcher, **CODER}
    return tiny.write_project(folder / f"{name}_{size}_{ranks.rank()}.yaml", content)


def train_in_float64(folder: Path) -> None:
    """Every tensor after two epochs, as each rank holds it."""
    from lavis_itm_plugins.data.features import FeatureFile
    from lavis_itm_plugins.train import run_training

    ranks.start_group()
    torch.use_deterministic_algorithms(True)
    stock = FeatureFile.fetch
    FeatureFile.fetch = lambda *given: stock(*given).double()
    torch.set_default_dtype(torch.float64)
    runner = run_training(project(folder, "float64", 0.0))
    state = {name: value for name, value in runner._model.state_dict().items() if torch.is_tensor(value)}
    metrics = runner.folder.metric_lines() if ranks.rank() == 0 else []
    torch.save({"state": state, "metrics": metrics}, folder / f"float64_{ranks.size()}_{ranks.rank()}.pt")
    if ranks.size() > 1:
        dist.destroy_process_group()


def in_child(act: Any) -> int:
    """How a forked process ended."""
    child = os.fork()
    if child == 0:
        act()
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(folder: Path, path: Path) -> None:
    from lavis_itm_plugins.train import run_training

    # in the second epoch, two steps after a checkpoint
    at_call(EVENTS["batch"], 13, send("SIGKILL"))
    run_training(path)


def kill_and_resume(folder: Path) -> None:
    from lavis_itm_plugins.train import run_training

    itm = {"save_every_steps": 2}
    stopped = project(folder, "stopped", 0.2, itm=dict(itm))
    assert in_child(partial(killed, folder, stopped)) == -9
    assert in_child(partial(run_training, stopped, ["run.resume_ckpt_path=auto"])) == 0
    assert in_child(partial(run_training, project(folder, "whole", 0.2, itm=dict(itm)))) == 0


if __name__ == "__main__":
    from lavis_itm_plugins import register

    register()
    target = Path(sys.argv[1])
    failed = ranks.fork(partial(train_in_float64, target), [1, 2])
    kill_and_resume(target)
    sys.exit(failed)
