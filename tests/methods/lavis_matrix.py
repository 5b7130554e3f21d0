"""The matrix of LAVIS's networks and the methods: what test_lavis_matrix.py and its ranks train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lavis_tiny

METHODS = ("plain", "dbl_momentum", "dbl_frozen", "dbl_peer", "aoq", "bcls", "coder")
STEPS = 4
# the richest objective that each has: with it the matching loss and the queues are trained
OBJECTIVES = {"clip": "itc", "blip": "itc_itm", "albef": "itc_itm", "blip2": "itc_itm"}


def model_section(
    network: str, method: str, folder: Path, objective: str, *, dropout: float = 0.1, anchor: str | None = None
) -> dict[str, Any]:
    """A `model` section; `anchor` is a run folder, which a frozen anchor needs."""
    sizes = {} if network == "clip" else {"bert": {"dropout": dropout}}
    matcher = lavis_tiny.section(network, folder / "vocab.txt", objective=objective, **sizes)
    name, _, scenario = method.partition("_")
    frozen = {"anchor": anchor} if scenario == "frozen" else {}
    sections: dict[str, dict[str, Any]] = {
        "plain": matcher,
        "dbl": {"arch": "itm_dbl", "model_type": scenario, "matcher": matcher, "dbl": frozen},
        "aoq": {
            "arch": "itm_aoq",
            "model_type": "two_rounds",
            "matcher": matcher,
            "candidates": {"start_epoch": 1, "captions_per_image": 8, "images_per_caption": 4},
        },
        "bcls": {
            "arch": "itm_bcls",
            "model_type": "cider",
            "matcher": matcher,
            "labels": {"cache": str(folder / "labels")},
            "kendall": {"window": 6, "stride": 3},
        },
        "coder": {
            "arch": "itm_coder",
            "model_type": "full",
            "matcher": matcher,
            "dictionary": {"size": 40},
            "concept": {"min_count": 1, "size": 12, "word_dim": 8, "conceptnet": "scenes"},
            "labels": {"prototypes": 6},
        },
    }
    return sections[name]


def project(folder: Path, name: str, model: dict[str, Any], **run: Any) -> dict[str, Any]:
    """A project of four steps an epoch."""
    return lavis_tiny.project(model, folder, name, **{"batch_size_train": STEPS * 4, "k_test": 3, **run})
