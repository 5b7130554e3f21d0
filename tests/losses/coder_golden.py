"""Tensors of CODER's golden archive, or of an extract, by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch


class Golden:
    """Tensors of an archive, whose names there begin with a prefix."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.archive, self.prefix = np.load(path), prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.archive[self.prefix + name])


def open_golden(request: pytest.FixtureRequest, fixture: Path, prefix: str = "") -> Golden:
    """The extract, or the shared archive, as the fixture's parameter says."""
    shared = request.param == "shared"
    return Golden(request.getfixturevalue("shared") / "golden" / "coder.npz" if shared else fixture, prefix)
