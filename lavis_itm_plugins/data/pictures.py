"""Pictures held in memory as bytes: for small generated data, where decoding every epoch would dominate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class DecodedPictures:
    """Pictures (n, height, width, 3) uint8, given out as float32 (n, 3, height, width) in [0, 1]."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> DecodedPictures:
        """Decode files of one size."""
        return cls(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Pictures of these rows."""
        return torch.from_numpy(self.array[rows]).permute(0, 3, 1, 2).float().div_(255)
