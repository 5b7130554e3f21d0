"""What an encoder gives and a score function takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Encoded images or captions: one vector each, and/or a set of vectors each (regions or words) with its mask.

    `pooled` (n, D); `regions` (n, R, D), the words when these are captions; `mask` (n, R) bool, True where real.

    >>> images = Encoded(pooled=torch.zeros(3, 8))
    >>> len(images), images[1:].pooled.shape
    (3, torch.Size([2, 8]))
    """

    pooled: Tensor | None = None
    regions: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return next(len(value) for value in self._tensors())

    def __getitem__(self, rows: slice | Tensor) -> Encoded:
        return self.map(lambda value: value[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoded:
        """A copy with `change` applied to every tensor that is there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Encoded(**{name: None if value is None else change(value) for name, value in values.items()})

    def to(self, device: torch.device | str) -> Encoded:
        """A copy on the device."""
        return self.map(lambda value: value.to(device))

    def padded_to(self, size: int) -> Encoded:
        """A copy whose sets hold `size` vectors, the new ones zero and masked."""
        if self.regions is None or self.regions.shape[1] == size:
            return self
        return Encoded(self.pooled, _padded(self.regions, size), _padded(_mask_of(self), size))

    @property
    def lengths(self) -> Tensor:
        """Real regions or words of each row, (n,) int64."""
        if self.mask is not None:
            return self.mask.sum(dim=1)
        assert self.regions is not None
        return torch.full((len(self),), self.regions.shape[1], device=self.regions.device)

    def _tensors(self) -> list[Tensor]:
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if value is not None]


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Rows of several parts in order; sets of different size are padded with zeros and masked."""
    longest = max((part.regions.shape[1] for part in parts if part.regions is not None), default=0)
    parts = [part.padded_to(longest) for part in parts]
    if any(part.mask is not None for part in parts):
        parts = [Encoded(part.pooled, part.regions, _mask_of(part)) for part in parts]
    return Encoded(*(_stack([getattr(part, field.name) for part in parts]) for field in fields(Encoded)))


def _mask_of(part: Encoded) -> Tensor:
    assert part.regions is not None
    everything = torch.ones(part.regions.shape[:2], dtype=torch.bool, device=part.regions.device)
    return everything if part.mask is None else part.mask


def _padded(value: Tensor, size: int) -> Tensor:
    shape = (value.shape[0], size - value.shape[1], *value.shape[2:])
    return torch.cat([value, value.new_zeros(shape)], dim=1)


def _stack(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.cat(present) if present else None
