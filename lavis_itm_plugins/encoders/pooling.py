"""From a set of vectors to one: mean, max, both added, or the learned generalised pooling operator (GPO)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

POOLINGS = ("mean", "max", "mean_max", "gpo")


def mean_pool(items: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real items: (n, k, d) and mask (n, k) or None -> (n, d)."""
    if mask is None:
        return items.mean(dim=1)
    # filled, not multiplied: what lies in the padding may be infinite
    total = items.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1).to(items.dtype)


def max_pool(items: Tensor, mask: Tensor | None) -> Tensor:
    """Maximum over real items, dimension by dimension: (n, k, d) -> (n, d)."""
    if mask is not None:
        items = items.masked_fill(~mask.unsqueeze(-1), torch.finfo(items.dtype).min)
    return items.amax(dim=1) if items.shape[1] > 1 else items.squeeze(1)


def last_item(items: Tensor, mask: Tensor | None) -> Tensor:
    """The last real item, where the real ones come first: (n, k, d) -> (n, d)."""
    if mask is None:
        return items[:, -1]
    return items[torch.arange(len(items), device=items.device), mask.sum(dim=1) - 1]


class Pooling(nn.Module):
    """One of POOLINGS, or "last", as a module: items (n, k, d), mask (n, k) True where real -> (n, d).

    >>> Pooling("mean_max")(torch.tensor([[[1.0], [3.0]]]), None)
    tensor([[5.]])
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gpo = GPO() if kind == "gpo" else None

    def forward(self, items: Tensor, mask: Tensor | None) -> Tensor:
        """Pool the real items of each row."""
        if self.gpo is not None:
            return self.gpo(items, mask)
        if self.kind == "mean":
            return mean_pool(items, mask)
        if self.kind == "max":
            return max_pool(items, mask)
        if self.kind == "last":
            return last_item(items, mask)
        return mean_pool(items, mask) + max_pool(items, mask)


class GPO(nn.Module):
    """Generalised pooling operator (Chen et al., CVPR 2021, VSE-infinity): learned weights over sorted values.

    Each dimension is sorted on its own, largest first; a small GRU over position codes gives the weight of each place,
    so mean and max are special cases. Parameter names are those of the official code.
    """

    def __init__(self, code_dim: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.gru = nn.GRU(code_dim, hidden, 1, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden, 1, bias=False)

    def forward(self, items: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum of each dimension's sorted values: (n, k, d) -> (n, d)."""
        n, k, _ = items.shape
        lengths = torch.full((n,), k) if mask is None else mask.sum(dim=1).cpu()
        real = torch.arange(k, device=items.device)[None] < lengths.to(items.device)[:, None]
        if mask is not None:
            items = items.masked_fill(~mask.unsqueeze(-1), torch.finfo(items.dtype).min)
        ordered = items.sort(dim=1, descending=True).values.masked_fill(~real.unsqueeze(-1), 0.0)
        return (ordered * self._weights(lengths, real, items.dtype).unsqueeze(-1)).sum(dim=1)

    def _weights(self, lengths: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
        """Pooling weights (n, k), a function of the number of items alone, so each length is computed once."""
        distinct, row_of = lengths.unique(return_inverse=True)
        code = position_code(real.shape[1], self.code_dim).to(device=real.device, dtype=dtype)
        packed = pack_padded_sequence(
            code.expand(len(distinct), -1, -1), distinct, batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=real.shape[1])
        forward, backward = states.chunk(2, dim=-1)
        row_of = row_of.to(real.device)
        scores = self.linear((forward + backward) / 2).squeeze(-1)[row_of]
        return torch.softmax(scores.masked_fill(~real, float("-inf")) / 0.1, dim=1)


def position_code(length: int, dim: int) -> Tensor:
    """Sinusoidal position code (length, dim), float32: sine in even columns, cosine in odd ones."""
    frequency = torch.exp(torch.arange(0, dim, 2) * -(math.log(10000.0) / dim))
    angle = torch.arange(length).unsqueeze(1) * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).view(length, dim)
