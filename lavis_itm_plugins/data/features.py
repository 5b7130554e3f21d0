"""Where pictures come from: feature files in the SCAN layout, opened by memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError


class FeatureFile:
    """The rows of one `.npy` file, (images, regions, dim) or (images, dim), float16 or float32.

    The file is mapped, not read: opening costs milliseconds at any size, and processes share its pages.

    Raises ItmError when the file is missing, is no plain array, or has another shape or type.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.array = _open(self.path)
        self.regions = 1 if self.array.ndim == 2 else self.array.shape[1]
        self.dim = self.array.shape[-1]

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Features (n, regions, dim) of these rows, float32."""
        batch = np.empty((len(rows), *self.array.shape[1:]), dtype=np.float32)
        for position, row in enumerate(rows):
            batch[position] = self.array[row]
        return torch.from_numpy(batch).view(len(rows), self.regions, self.dim)

    def __getstate__(self) -> dict[str, Path]:
        # A worker process maps the file again; pickling the map would copy every feature.
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _open(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ItmError(f"feature file {path} does not exist; check `root`, or download the features") from None
    except (OSError, ValueError, EOFError) as error:
        raise ItmError(f"feature file {path} cannot be read as a .npy array ({error}); is it complete?") from None
    if array.ndim not in (2, 3) or 0 in array.shape[1:]:
        raise ItmError(f"feature file {path} has shape {array.shape}; expected (images, regions, dim) or (images, dim)")
    if array.dtype not in (np.float16, np.float32):
        raise ItmError(f"feature file {path} holds {array.dtype}; convert it to float16 or float32")
    return array
