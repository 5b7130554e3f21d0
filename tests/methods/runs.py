"""Small runs that the tests of several methods start from, or compare over one and two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from runners.ranks import GLOBAL_BATCH, rank, size


def train(folder: Path, content: dict[str, Any], *options: str) -> Any:
    """Run a project whose `run_name` is set; gives back its runner."""
    from lavis_itm_plugins.train import run_training

    return run_training(tiny.write_project(folder / f"{content['run']['itm']['run_name']}.yaml", content), options)


def plain_run(folder: Path) -> Path:
    """Data, and a run `plain` of the triplet loss, in the folder."""
    tiny.write_precomp(folder / "data", test=8)
    content = tiny.project(folder / "data", folder, itm={"run_name": "plain"})
    content["model"]["base_loss"] = {"name": "triplet"}
    train(folder, content)
    return folder


def train_on_ranks(folder: Path, name: str, method: dict[str, Any] | None, **run: Any) -> None:
    """Train without dropout at the same global batch on any number of ranks; saves weights and metrics."""
    options = {"batch_size_train": GLOBAL_BATCH // size(), "batch_size_eval": 3, **run}
    content = tiny.project(folder / "data", folder / "runs", **options, itm={"run_name": f"{name}_{size()}"})
    matcher = content["model"]
    matcher["image"]["dropout"] = 0.0
    matcher["text"].update(dropout=0.0, output_dropout=0.0)
    if method is not None:
        content["model"] = {"matcher": matcher, **method}
    from lavis_itm_plugins.train import run_training

    runner = run_training(tiny.write_project(folder / f"{name}_{size()}_{rank()}.yaml", content))
    if rank() == 0:
        weights = {key: value for key, value in runner._model.state_dict().items() if torch.is_tensor(value)}
        metrics = runner.folder.metrics.read_text()
        torch.save({"weights": weights, "metrics": metrics}, folder / f"{name}_{size()}.pt")
