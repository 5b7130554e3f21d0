"""The keys of past batches, as negatives for this one: CODER's dictionaries (MoCo's queue)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import ItmError

EMPTY = -1  # image id of a slot that was never written; 0 is an image


class Dictionary(nn.Module):
    """A ring of the newest keys with their image ids; it starts empty and takes batches of any size.

    Everything is a buffer, so a checkpoint holds it. Several ranks hold the same dictionary when each enqueues the
    gathered batch. (He et al., MoCo, CVPR 2020, section 3.2.)

    Attributes:
        keys: (capacity, dim), at least float32; rows never written are 0.
        image_ids: (capacity,) int64, -1 where the slot is empty.
        items: (capacity,) int64, the training item that a key was made of; -1 unknown.
        filled: 0-d int64, how many slots hold a key.
        pointer: 0-d int64, the slot that is written next.

    Raises ItmError for a negative capacity or a size below 1.

    >>> dictionary = Dictionary(3, 2)
    >>> dictionary.enqueue(torch.eye(2), torch.tensor([7, 0]))
    >>> dictionary.enqueue(torch.ones(2, 2), torch.tensor([5, 5]))
    >>> dictionary.image_ids, int(dictionary.filled)
    (tensor([5, 0, 5]), 3)
    """

    keys: Tensor
    image_ids: Tensor
    items: Tensor
    filled: Tensor
    pointer: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        if capacity < 0 or dim < 1:
            raise ItmError(f"a dictionary of {capacity} keys of size {dim} cannot be made; give at least 0 and 1")
        self.register_buffer("keys", torch.zeros(capacity, dim))
        self.register_buffer("image_ids", torch.full((capacity,), EMPTY))
        self.register_buffer("items", torch.full((capacity,), EMPTY))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("pointer", torch.tensor(0))

    @property
    def capacity(self) -> int:
        """How many keys it can hold."""
        return len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor, items: Tensor | None = None) -> None:
        """Write keys (n, dim) with their image ids (n,) over the oldest; of more than it holds, the last stay.

        `items` (n,) are the training items they were made of. Raises ItmError for shapes that do not fit, and for a
        negative image id.
        """
        if keys.ndim != 2 or keys.shape[1] != self.keys.shape[1] or image_ids.shape != keys.shape[:1]:
            raise ItmError(
                f"keys {tuple(keys.shape)} and image ids {tuple(image_ids.shape)} do not fit a dictionary of vectors "
                f"of size {self.keys.shape[1]}; give (n, {self.keys.shape[1]}) and (n,)"
            )
        if bool((image_ids < 0).any()):
            raise ItmError(f"image id {int(image_ids.min())} is negative, which marks an empty slot; number from 0")
        count, capacity = len(keys), self.capacity
        kept = min(count, capacity)
        if not kept:
            return
        slots = (self.pointer + torch.arange(count - kept, count, device=self.keys.device)) % capacity
        self.keys[slots] = keys[-kept:].detach().to(self.keys.dtype)
        self.image_ids[slots] = image_ids[-kept:]
        self.items[slots] = EMPTY if items is None else items[-kept:]
        self.pointer.copy_((self.pointer + count) % capacity)
        self.filled.add_(kept).clamp_(max=capacity)

    def clear(self) -> None:
        """Forget every key."""
        self.keys.zero_()
        for marks in (self.image_ids, self.items):
            marks.fill_(EMPTY)
        for count in (self.filled, self.pointer):
            count.zero_()

    def negatives_of(self, image_ids: Tensor) -> Tensor:
        """Bool (n, capacity), True where a slot is filled with another image than the query's.

        >>> dictionary = Dictionary(3, 1)
        >>> dictionary.enqueue(torch.ones(2, 1), torch.tensor([4, 0]))
        >>> dictionary.negatives_of(torch.tensor([0, 4]))
        tensor([[ True, False, False],
                [False,  True, False]])
        """
        return (self.image_ids != EMPTY) & (self.image_ids != image_ids[:, None])

    def newest(self, count: int) -> Tensor:
        """The slots of the newest keys, newest first; fewer than `count` (int) where fewer were written."""
        ages = torch.arange(1, min(count, int(self.filled)) + 1, device=self.keys.device)
        return (self.pointer - ages) % max(self.capacity, 1)
