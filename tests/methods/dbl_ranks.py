"""What one process, or each of two, trains for test_dbl_runs.py: `dbl_ranks.py FOLDER` imports LAVIS once and forks.

Float64, without dropout, the same global batch: each scenario's weights go to `FOLDER/SCENARIO_SIZE.pt`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from methods.runs import train_on_ranks
from runners.ranks import fork, size, start_group


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
        train_on_ranks(folder, "plain", None)
    anchor = {"scenario": "frozen", "anchor": str(folder / "runs" / "plain_1"), "form": "absolute"}
    for name, dbl in {
        "momentum": {"momentum": 0.5},
        "frozen": {**anchor, "cache": "never"},
        # where target and anchor are equal but for rounding, rounding decides which negative gained most
        "cached": {**anchor, "from_anchor": False},
        "peer": {"scenario": "peer", "branches": 3, "mutual": True, "loss": "distill_kl"},
        "boosted_peer": {"scenario": "peer", "branches": 2},
    }.items():
        train_on_ranks(folder, name, {"arch": "itm_dbl", "model_type": "momentum", "dbl": dbl})
    if size() > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(fork(partial(main, Path(sys.argv[1])), [1, 2]))
