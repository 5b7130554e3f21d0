"""What one process, or each of two, trains for test_dbl_runs.py: `dbl_ranks.py FOLDER` imports LAVIS once and forks.

Float64, without dropout, the same global batch: each scenario's weights go to `FOLDER/SCENARIO_SIZE.pt`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import tiny
import torch
import torch.distributed as dist
from runners.ranks import GLOBAL_BATCH, fork, rank, size, start_group


def main(folder: Path) -> None:
    from lavis_itm_plugins import register
    from lavis_itm_plugins.data.features import FeatureFile

    register()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    stock = FeatureFile.fetch
    FeatureFile.fetch = lambda *given: stock(*given).double()
    start_group()
    if size() == 1:
        train(folder, "plain", {})
    anchor = {"scenario": "frozen", "anchor": str(folder / "runs" / "plain_1"), "form": "absolute"}
    for name, dbl in {
        "momentum": {"momentum": 0.5},
        "frozen": {**anchor, "cache": "never"},
        # where target and anchor are equal but for rounding, rounding decides which negative gained most
        "cached": {**anchor, "from_anchor": False},
        "peer": {"scenario": "peer", "branches": 3, "mutual": True, "loss": "distill_kl"},
        "boosted_peer": {"scenario": "peer", "branches": 2},
    }.items():
        train(folder, name, dbl)
    if size() > 1:
        dist.destroy_process_group()


def train(folder: Path, name: str, dbl: dict) -> None:
    from lavis_itm_plugins.train import run_training

    options = {"batch_size_train": GLOBAL_BATCH // size(), "batch_size_eval": 3}
    content = tiny.project(folder / "data", folder / "runs", **options, itm={"run_name": f"{name}_{size()}"})
    matcher = content["model"]
    matcher["image"]["dropout"] = 0.0
    matcher["text"].update(dropout=0.0, output_dropout=0.0)
    if name != "plain":
        content["model"] = {"arch": "itm_dbl", "model_type": "momentum", "matcher": matcher, "dbl": dbl}
    runner = run_training(tiny.write_project(folder / f"{name}_{size()}_{rank()}.yaml", content))
    if rank() == 0:
        weights = {key: value for key, value in runner._model.state_dict().items() if torch.is_tensor(value)}
        metrics = runner.folder.metrics.read_text()
        torch.save({"weights": weights, "metrics": metrics}, folder / f"{name}_{size()}.pt")


if __name__ == "__main__":
    sys.exit(fork(partial(main, Path(sys.argv[1])), [1, 2]))
