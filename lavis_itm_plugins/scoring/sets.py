"""Images and captions as scoring reads them: checked, at least float32, and in tiles without padded words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from lavis_itm_plugins.errors import ItmError

Prepared = TypeVar("Prepared")

# What a tile holds on a CPU: with less there are more calls than the work is worth, with more the backward pass, which
# computes a tile again, needs more memory.
_REGION_NUMBERS = 5 * 2**20
_ATTENTION_CELLS = 2**21
_FEWEST_REGIONS = 2**10
_GPU_NUMBERS = 2**26
_MOST_THREADS = 8


def at_once(numbers: int, device: torch.device) -> int:
    """How many numbers to work on at once: so many on a CPU, or all that keep a GPU busy."""
    return numbers if device.type == "cpu" else _GPU_NUMBERS


def threads() -> int:
    """How many threads a block grows with: each brings its core's cache, and more of them would only take memory."""
    return min(torch.get_num_threads(), _MOST_THREADS)


@dataclass(frozen=True)
class Sets:
    """`images` (I, R, D) and `captions` (C, T, D) with zeros for padding.

    `image_mask` (I, R) is None where every region is real; `lengths` (C,) are whole numbers.
    """

    images: Tensor
    image_mask: Tensor | None
    captions: Tensor
    lengths: list[int]

    @classmethod
    def checked(cls, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None) -> Sets:
        """From what a person gives; `regions` (I,) numbers or (I, R) bool. Raises ItmError for what does not fit."""
        if images.dim() != 3 or captions.dim() != 3 or images.shape[2] != captions.shape[2]:
            raise ItmError(
                f"images have shape {tuple(images.shape)}, captions {tuple(captions.shape)}; give (I, R, D) and "
                "(C, T, D) of one size D"
            )
        kind = torch.promote_types(torch.promote_types(images.dtype, captions.dtype), torch.float32)
        image_mask = _mask(regions, images, "regions")
        word_mask = _mask(lengths, captions, "lengths")
        counts = [captions.shape[1]] * len(captions) if word_mask is None else word_mask.sum(dim=1).tolist()
        return cls(_filled(images.to(kind), image_mask), image_mask, _filled(captions.to(kind), word_mask), counts)

    def block(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """The images of a block and their mask."""
        return self.images[rows], None if self.image_mask is None else self.image_mask[rows]

    def images_at_once(self) -> int:
        """How many images have regions that fit into the tile together."""
        return max(1, at_once(_REGION_NUMBERS, self.images.device) // max(1, self.images[0:1].numel()))

    def image_blocks(self) -> Iterator[slice]:
        """Consecutive images, as many as fit."""
        size = self.images_at_once()
        return (slice(start, min(start + size, len(self.images))) for start in range(0, len(self.images), size))

    def caption_groups(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Captions of equal length (c,) rows and (c, n, D) words, few enough for a tile with so many images."""
        by_length: dict[int, list[int]] = {}
        for row, length in enumerate(self.lengths):
            by_length.setdefault(length, []).append(row)
        # with few images no more words at once either: their contexts are vectors
        cells = at_once(_ATTENTION_CELLS, self.images.device) // max(_FEWEST_REGIONS, images * self.images.shape[1])
        for length, rows in sorted(by_length.items()):
            size = max(1, cells // length)
            for start in range(0, len(rows), size):
                chosen = torch.tensor(rows[start : start + size], device=self.captions.device)
                yield chosen, self.captions[chosen, :length]


def score_in_tiles(
    sets: Sets,
    prepare: Callable[[slice], Prepared],
    score: Callable[[Prepared, Tensor, Tensor], Tensor],
    *,
    checkpoint: bool = False,
    all_images: bool = False,
) -> Tensor:
    """Scores (I, C) from tiles of images and captions of equal length, so that no padded word is ever computed.

    `prepare(rows)` is called once for a block of images, `score(prepared, columns, words)` for each group of captions.
    With `checkpoint` a tile is computed again in the backward pass, which then keeps no attention in between.
    """
    rows_of_scores = []
    for rows in [slice(0, len(sets.images))] if all_images else sets.image_blocks():
        prepared = prepare(rows)
        columns, parts = [], []
        for chosen, words in sets.caption_groups(rows.stop - rows.start):
            columns.append(chosen)
            if checkpoint and torch.is_grad_enabled():
                parts.append(recomputed(score, prepared, chosen, words, use_reentrant=False))
            else:
                parts.append(score(prepared, chosen, words))
        if parts:
            rows_of_scores.append(torch.cat(parts, dim=1)[:, torch.cat(columns).argsort()])
    if not rows_of_scores:
        return sets.images.new_zeros(len(sets.images), len(sets.captions))
    return torch.cat(rows_of_scores)


def half_precision(images: Tensor) -> torch.dtype | None:
    """The type that autocast asks products to have, where it is on; none for float64, which it never touches."""
    device = images.device.type
    if images.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    kind: torch.dtype = torch.get_autocast_dtype(device)
    return kind


def l2_normalized(vectors: Tensor) -> Tensor:
    """Vectors over their length plus 1e-8, as the field's code divides; a zero vector stays zero.

    >>> l2_normalized(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (lengths + 1e-8)


def _filled(items: Tensor, mask: Tensor | None) -> Tensor:
    # filled, not multiplied: what lies in the padding may not even be finite
    return items if mask is None else items.masked_fill(~mask.unsqueeze(-1), 0.0)


def _mask(counts: Tensor | None, items: Tensor, name: str) -> Tensor | None:
    """Bool (n, k), True where real, of numbers (n,) or of such a mask; None when everything is real."""
    if counts is None:
        return None
    counts = torch.as_tensor(counts, device=items.device)
    if name == "regions" and counts.dtype == torch.bool and counts.shape == items.shape[:2]:
        mask = counts
    elif counts.dtype in (torch.int64, torch.int32) and counts.shape == items.shape[:1]:
        if bool((counts > items.shape[1]).any()):
            raise ItmError(
                f"{name} holds {int(counts.max())}, but there are {items.shape[1]} places; give real numbers"
            )
        mask = torch.arange(items.shape[1], device=items.device)[None] < counts[:, None]
    else:
        raise ItmError(
            f"{name} is {counts.dtype} of shape {tuple(counts.shape)}; give whole numbers {tuple(items.shape[:1])}"
            + (f" or a bool mask {tuple(items.shape[:2])}" if name == "regions" else "")
        )
    if not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise ItmError(f"{name}: row {row} has nothing real in it; leave it out")
    return None if bool(mask.all()) else mask
