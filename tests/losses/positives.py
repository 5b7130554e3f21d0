"""Which cells of a batch are positives: those of the same image."""

from __future__ import annotations

import numpy as np
import torch


def same_image(ids: np.ndarray | torch.Tensor | list[int]) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.long)
    return ids[:, None] == ids
