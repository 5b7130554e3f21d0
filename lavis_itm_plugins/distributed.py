"""Rows of all ranks on every rank, with the gradient that makes R ranks of B equal one process of R x B."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lavis_itm_plugins.encoders.encoded import Encoded


def world_size() -> int:
    """Number of processes that train together; 1 outside torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 outside torchrun."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for the other processes; nothing outside torchrun."""
    if world_size() > 1:
        dist.barrier()


def row_counts(tensor: Tensor) -> list[int]:
    """How many rows each rank holds."""
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows (n_0 + n_1 + ..., ...) of all ranks in rank order; batches may differ in size.

    The backward sums over ranks. Every rank computes the whole loss, so DDP's averaging then gives exactly the
    gradient that one process with the whole batch has.
    """
    if world_size() == 1:
        return tensor
    return _GatherRows.apply(tensor) if tensor.requires_grad else _gather(tensor, row_counts(tensor))


def gather_encoded(encoded: Encoded) -> Encoded:
    """`gather_rows` of every tensor; region and word sets are padded to the longest of all ranks."""
    if world_size() == 1:
        return encoded
    if encoded.regions is not None:
        longest = torch.tensor([encoded.regions.shape[1]], device=encoded.regions.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        encoded = encoded.padded_to(int(longest))
        # a mask on one rank only would be a gather that the others do not join
        if any_rank(encoded.mask is not None) and encoded.mask is None:
            everything = torch.ones(encoded.regions.shape[:2], dtype=torch.bool, device=encoded.regions.device)
            encoded = replace(encoded, mask=everything)
    return encoded.map(gather_rows)


def _gather(tensor: Tensor, counts: list[int]) -> Tensor:
    most = max(counts)
    padded = tensor.detach().new_zeros((most, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    # gloo gathers no bool
    if tensor.dtype == torch.bool:
        return _gather(tensor.to(torch.uint8), counts).bool()
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.counts = row_counts(tensor)
        return _gather(tensor, ctx.counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]]


def copy_from_first_rank(module: torch.nn.Module) -> None:
    """Give every rank the first one's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; every rank must ask."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([int(flag)], device=device)
    dist.all_reduce(count)
    return bool(count)


def from_first_rank(value: Any) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def every_rank(value: Any) -> list[Any]:
    """The value of each rank, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
