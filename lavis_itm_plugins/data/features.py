"""Where pictures come from: feature files in the SCAN layout, opened by memory map."""

from __future__ import annotations

import sys
import warnings
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
        self._rows = _as_tensor(self.array)
        self._memory = ReusedMemory()
        self.regions = 1 if self.array.ndim == 2 else self.array.shape[1]
        self.dim = self.array.shape[-1]

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Features (n, regions, dim) of these rows, float32."""
        batch = self._memory.tensor((len(rows), *self.array.shape[1:]))
        # torch widens float16 eight times faster than NumPy
        for position, row in enumerate(np.asarray(rows).tolist()):
            batch[position].copy_(self._rows[row])
        return batch.view(len(rows), self.regions, self.dim)

    def __getstate__(self) -> dict[str, Path]:
        # A worker process maps the file again; pickling the map would copy every feature.
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


class ReusedMemory:
    """Float32 tensors in memory that is given out again once nothing refers to it any more.

    Fresh memory costs as much as the copy into it: the system clears every page of a batch of 38 MB.
    """

    KEPT = 3

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor with any content."""
        for array in self._arrays:
            # the list, this loop and the call itself hold three references; a tensor or a view of it one more
            if array.shape == shape and sys.getrefcount(array) == 3:
                return torch.from_numpy(array)
        array = np.empty(shape, dtype=np.float32)
        self._arrays = [array, *self._arrays[: self.KEPT - 1]]
        return torch.from_numpy(array)


def _as_tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # the file is mapped read-only, and nothing writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _open(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ItmError(f"feature file {path} does not exist; check `root`, or download the features") from None
    # NumPy's reader of the header raises many types on damaged bytes
    except Exception as error:
        raise ItmError(f"feature file {path} cannot be read as a .npy array ({error}); is it complete?") from None
    if array.ndim not in (2, 3) or 0 in array.shape[1:]:
        raise ItmError(f"feature file {path} has shape {array.shape}; expected (images, regions, dim) or (images, dim)")
    if array.dtype not in (np.float16, np.float32):
        raise ItmError(f"feature file {path} holds {array.dtype}; convert it to float16 or float32")
    return array
