"""What a checkpoint holds beside the weights, so that a resumed run equals one that never stopped."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lavis_itm_plugins.runners.loop import Totals


@dataclass
class TrainState:
    """Position of a run: `step` steps of `epoch` are done, `lines` of metrics.jsonl are written,
    `skipped` steps had a loss that was not finite."""

    epoch: int = 0
    step: int = 0
    totals: Totals = field(default_factory=Totals)
    best_rsum: float | None = None
    best_epoch: int | None = None
    lines: int = 0
    skipped: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, so that it loads with `weights_only`."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "total_steps": self.totals.steps,
            "total_sums": dict(self.totals.sums),
            "best_rsum": self.best_rsum,
            "best_epoch": self.best_epoch,
            "lines": self.lines,
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TrainState:
        """The state that `as_dict` gave."""
        totals = Totals(stored["total_steps"], dict(stored["total_sums"]))
        kept = {name: stored[name] for name in ("epoch", "step", "best_rsum", "best_epoch", "lines", "skipped")}
        return cls(totals=totals, **kept)


def random_state() -> dict[str, Any]:
    """Generators of Python, NumPy, torch and every GPU."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(stored: list[dict[str, Any]], rank: int) -> None:
    """Put this rank's generators back; a rank that was not there when the checkpoint was written gets a seed."""
    if rank >= len(stored):
        seed_all(int(stored[0]["torch"].sum()) + rank)
        return
    own = stored[rank]
    version, internal, gauss = own["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = own["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(own["torch"])
    if own["cuda"] and len(own["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(own["cuda"])


def be_deterministic(gpu: bool) -> None:
    """Let torch compute the same each time on a CPU; on a GPU speed comes first."""
    torch.use_deterministic_algorithms(not gpu, warn_only=True)
    # filling memory that is overwritten anyway belongs to torch's deterministic mode, and costs time
    torch.utils.deterministic.fill_uninitialized_memory = False


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
