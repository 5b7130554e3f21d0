"""What one process, or each of two, mines and trains for test_aoq_same_runs.py; one import of LAVIS for all of it.

Float64, without dropout, the same global batch: each run's weights go to `FOLDER/NAME_SIZE.pt`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from methods.runs import train_on_ranks
from runners.ranks import fork, rank, size, start_group

LISTS = {"captions_per_image": 9, "images_per_caption": 5}


def main(folder: Path) -> None:
    from lavis_itm_plugins import register
    from lavis_itm_plugins.data.features import FeatureFile

    register()
    torch.use_deterministic_algorithms(True)
    start_group()
    mine(folder)
    torch.set_default_dtype(torch.float64)
    stock = FeatureFile.fetch
    FeatureFile.fetch = lambda *given: stock(*given).double()
    if size() == 1:
        train_on_ranks(folder, "plain", None, max_epoch=1)
    source = {"source": str(folder / "runs" / "plain_1"), **LISTS}
    two_rounds = {"arch": "itm_aoq", "model_type": "two_rounds", "candidates": source}
    train_on_ranks(folder, "two_rounds", two_rounds, max_epoch=1)
    own = {"start_epoch": 1, "refresh_every": 1, **LISTS}
    logits = {"base_loss": {"name": "infonce"}, "aoq": {"offline": "logits", "tie_ranks": False}}
    refresh = {"arch": "itm_aoq", "model_type": "refresh", "candidates": own, **logits}
    train_on_ranks(folder, "refresh", refresh, max_epoch=3)
    shared = {**two_rounds, "base_loss": {"name": "infonce"}, "aoq": {"offline": "shared", "distill": 0.5, "draws": 2}}
    train_on_ranks(folder, "shared", shared, max_epoch=1)
    if size() > 1:
        dist.destroy_process_group()


def mine(folder: Path) -> None:
    """In memory, and into a store."""
    from lavis_itm_plugins.mining import CandidateFilters, DotProducts, MiningJob, build_candidates, mine_hard_negatives
    from lavis_itm_plugins.mining.exclusions import Exclusions

    rng = np.random.default_rng(0)
    images, captions = (rng.integers(-2, 3, (n, 4)).astype(np.float32) / 4 for n in (50, 230))
    owners, filters = rng.integers(0, 50, 230), CandidateFilters(max_score=0.7)
    mined = mine_hard_negatives(images, captions, owners, **LISTS, filters=filters, memory_budget_mb=1 / 128)
    job = MiningJob(DotProducts(images, captions), owners, Exclusions(owners, 50), 9, 5, filters, 1 / 128)
    build_candidates(folder / f"lists_{size()}", job, {"data": {}, "model": {}, "settings": {}})
    # every rank has the whole result
    arrays = {name: getattr(mined, name) for name in ("captions", "images", "caption_scores", "image_scores")}
    torch.save({**arrays, "report": mined.report}, folder / f"mined_{size()}_{rank()}.pt")


if __name__ == "__main__":
    sys.exit(fork(partial(main, Path(sys.argv[1])), [1, 2]))
