"""A small data set and project that trains in a second: what most tests of the training side use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("dog", "cat", "ball", "tree", "house", "boat", "car", "bird")


def write_precomp(root: Path, *, train: int = 24, val: int = 8, test: int = 0, regions: int = 3, dim: int = 8) -> Path:
    """Features in the SCAN layout: each image is a colour and a thing, told by five captions."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kinds = {(c, t): rng.normal(size=dim) for c in COLOURS for t in THINGS}
    for split, count in (("train", train), ("dev", val), ("test", test)):
        if not count:
            continue
        chosen = [list(kinds)[i % len(kinds)] for i in range(count)]
        features = np.stack([kinds[kind] + 0.1 * rng.normal(size=(regions, dim)) for kind in chosen])
        np.save(root / f"{split}_ims.npy", features.astype(np.float32))
        forms = ("a {} {}", "the {} {} there", "one {} {} in the grass", "a photo of a {} {}", "see the {} {}")
        lines = [form.format(*kind) for kind in chosen for form in forms]
        (root / f"{split}_caps.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def project(root: Path, output_dir: Path, **run: Any) -> dict[str, Any]:
    """A project of `itm_vse` on `write_precomp` data; `run` overrides keys of the run section."""
    return {
        "model": {
            "arch": "itm_vse",
            "model_type": "regions_gru",
            "embed_dim": 16,
            "min_count": 1,
            "image": {"kind": "regions", "dropout": 0.1},
            "text": {"word_dim": 8, "hidden": 8, "dropout": 0.1},
        },
        "datasets": {"itm_precomp": {"root": str(root)}},
        "run": {
            "task": "itm_retrieval",
            "runner": "itm_runner",
            "lr_sched": "itm_cosine_lr",
            "init_lr": 0.01,
            "max_epoch": 2,
            "batch_size_train": 16,
            "batch_size_eval": 4,
            "seed": 3,
            "output_dir": str(output_dir),
            "valid_splits": ["val"],
            "device": "cpu",
            **run,
        },
    }


def write_project(path: Path, content: dict[str, Any]) -> Path:
    """The project as a YAML file."""
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
