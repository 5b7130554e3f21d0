"""Cases of the official VSE-infinity and VSE++ code in float64 (tests/fixtures/golden_vse.npz)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from golden import FIXTURES
from torch import Tensor

FILE = FIXTURES / "golden_vse.npz"
# position codes are float32 in the official code, float64 tolerances do not hold for GPO
GPO_TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


def golden(case: str) -> dict[str, Tensor]:
    """The arrays of one case, real numbers in float64: `in/...`, `w/...`, `out/...`, `grad/...`."""
    with np.load(FILE) as file:
        arrays = {name.removeprefix(f"{case}/"): file[name] for name in file.files if name.startswith(f"{case}/")}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}


def weights(case: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The case's weights under our names; `names` maps official prefixes to ours, other weights are left out."""
    found = {}
    for key, value in case.items():
        for theirs, ours in names.items():
            if key.startswith(f"w/{theirs}"):
                found[ours + key.removeprefix(f"w/{theirs}")] = value
    return found


def mask_of(lengths: Tensor, size: int) -> Tensor:
    """True for the first `lengths[i]` items of row i."""
    return torch.arange(size)[None] < lengths[:, None]
