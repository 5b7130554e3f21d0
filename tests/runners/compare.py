"""Two run folders, compared bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def assert_same_runs(folder: Path, reference: Path) -> None:
    """Every tensor and value of both checkpoints, and every line of metrics; only names of folders may differ."""
    for name in ("checkpoint_last.pth", "checkpoint_best.pth"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, reference))
        for stored in (one, other):
            del stored["config"]["run"]["output_dir"], stored["config"]["run"]["itm"]["run_name"]
        assert_equal(one, other, name)
    assert (folder / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    assert not list(folder.glob(".*.tmp"))


def assert_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{number}]")
    else:
        assert one == other, where
