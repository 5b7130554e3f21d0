"""Hinges of every query of a batch over its negatives, both directions at once, and their reduction.

Query (0, i) is image i against all captions (row i); query (1, j) is caption j against all images (column j).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.losses.scores import check_choice

REDUCTIONS = ("sum", "mean")


def hardest_hinges(values: Tensor, offset: Tensor | float, valid: Tensor) -> Tensor:
    """The largest hinge ``[values + offset]+`` of each query, (2, B); 0 for a query without a valid negative.

    ``values`` (B, B); ``offset`` a number or (B,), one per query; ``valid`` bool (B, B). Value and gradient are those
    of the official code (VSE++, DBL: clamp, zero the masked cells, max), which keeps two B x B matrices of hinges.

    >>> hardest_hinges(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), 0.0, ~torch.eye(2, dtype=torch.bool))
    tensor([[0.8000, 0.1000],
            [0.1000, 0.8000]])
    """
    queries = torch.arange(len(values), device=values.device)
    with torch.no_grad():
        masked = values.masked_fill(~valid, -torch.inf)
        # The copy of the transpose pays: a maximum along columns is slower than copy and maximum along rows.
        by_direction = (masked.max(dim=1), masked.T.contiguous().max(dim=1))
        highest, picked = (torch.stack(part) for part in zip(*by_direction, strict=True))
        # With no hinge above 0 all cells tie at 0 and the official maximum takes the first one. It is a negative whose
        # hinge is exactly 0, where clamp has slope 1, or it has slope 0.
        picked.masked_fill_(highest + offset <= 0, 0)
    rows, columns = torch.stack([queries, picked[1]]), torch.stack([picked[0], queries])
    hinges = (values[rows, columns] + offset).clamp(min=0)
    return hinges.masked_fill(~valid[rows, columns], 0)


def summed_hinges(values: Tensor, offset: Tensor | float, valid: Tensor) -> Tensor:
    """The sum of ``[values + offset]+`` over all valid negatives of each query, (2, B); arguments as above.

    >>> summed_hinges(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), 0.0, ~torch.eye(2, dtype=torch.bool))
    tensor([[0.8000, 0.1000],
            [0.1000, 0.8000]])
    """
    offset = torch.as_tensor(offset, dtype=values.dtype, device=values.device).expand(len(values))
    rows = (values + offset[:, None]).clamp(min=0).masked_fill(~valid, 0)
    columns = (values + offset).clamp(min=0).masked_fill(~valid, 0)
    return torch.stack([rows.sum(dim=1), columns.sum(dim=0)])


def reduce_queries(losses: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """Losses of the queries (2, B) to one number; ``valid`` bool (B, B) says which queries have a negative at all.

    "sum": over both directions. "mean": each direction's mean over queries with a valid negative, then the two
    averaged; 0 if there is none.

    >>> valid = torch.tensor([[False, True], [False, False]])
    >>> reduce_queries(torch.tensor([[3.0, 0.0], [0.0, 5.0]]), valid, "mean")
    tensor(4.)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "sum":
        return losses.sum()
    queries = torch.stack([valid.any(dim=1), valid.any(dim=0)]).sum(dim=1)
    return (losses.sum(dim=1) / queries.clamp(min=1)).mean()
