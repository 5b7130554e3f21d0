"""A few small pictures with captions, and a project that trains on them in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
SPLITS = ("train", "train", "train", "val", "test")


def write_pictures(folder: Path, count: int = 20, size: int = 24) -> list[str]:
    """`count` noisy pictures of one colour each; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        colour = list(COLOURS.values())[number % len(COLOURS)]
        pixels = np.clip(rng.normal(colour, 30, (size, size, 3)), 0, 255).astype(np.uint8)
        names.append(f"{number:02}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names


def captions_of(number: int) -> list[str]:
    """Two captions of a picture."""
    colour = list(COLOURS)[number % len(COLOURS)]
    return [f"a {colour} square, number {number}", f"something {colour}, and it is the {number}th"]


def write_jsonl(folder: Path, count: int = 20, size: int = 24) -> Path:
    """Pictures in `folder`/images and captions.jsonl, three fifths train."""
    names = write_pictures(folder / "images", count, size)
    entries = [
        {"image": f"images/{name}", "captions": captions_of(number), "split": SPLITS[number % len(SPLITS)]}
        for number, name in enumerate(names)
    ]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def write_lavis(folder: Path) -> dict[str, Any]:
    """The same as LAVIS's own three files; a `build_info` that its builders read without a download."""
    by_split: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for number, name in enumerate(write_pictures(folder / "images")):
        split, captions = SPLITS[number % len(SPLITS)], captions_of(number)
        if split == "train":
            by_split[split] += [{"image": name, "image_id": f"id{number}", "caption": caption} for caption in captions]
        else:
            by_split[split].append({"image": name, "caption": captions})
    annotations = {}
    for split, entries in by_split.items():
        path = str((folder / f"{split}.json").absolute())
        Path(path).write_text(json.dumps(entries), encoding="utf-8")
        annotations[split] = {"url": path, "storage": path}
    return {"annotations": annotations, "images": {"storage": str((folder / "images").absolute())}}


def pixels_project(datasets: dict[str, Any], output_dir: Path, **run: Any) -> dict[str, Any]:
    """A project of a tiny convolutional `itm_vse`; `run` overrides keys of the run section."""
    return {
        "model": {
            "arch": "itm_vse",
            "model_type": "pixels_gru",
            "embed_dim": 16,
            "min_count": 1,
            "image": {"kind": "conv", "width": 16},
            "text": {"word_dim": 8, "hidden": 8},
        },
        "datasets": datasets,
        "run": {
            "task": "itm_retrieval",
            "runner": "itm_runner",
            "lr_sched": "itm_cosine_lr",
            "init_lr": 0.01,
            "max_epoch": 1,
            "batch_size_train": 8,
            "batch_size_eval": 4,
            "seed": 3,
            "output_dir": str(output_dir),
            "valid_splits": ["val"],
            "test_splits": ["test"],
            "device": "cpu",
            "itm": {"run_name": "run"},
            **run,
        },
    }


def metrics_of(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
