"""A model of one weight whose loss adds up over batches, and the loop around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lavis_itm_plugins.runners.loop import Epoch, LoopSettings, train_steps
from lavis_itm_plugins.runners.watch import FiniteWatch


class Stub(nn.Module):
    """The loss is the mean of `weight * x`; a batch of negative numbers has a finite loss without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.other = nn.Parameter(torch.tensor([1.0]))
        self.hooks = 0

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        x = samples["x"]
        loss = (self.weight * x).mean() + 0.1 * self.other.sum()
        if (x < 0).all():
            # sqrt has no slope at 0, and 0 times infinity is nan
            loss = loss + (0 * self.weight).sqrt().sum()
        return {"loss": loss}

    def after_step(self) -> None:
        self.hooks += 1

    def clip_groups(self) -> list[list[nn.Parameter]]:
        return [[self.weight], [self.other]]


class Constant:
    """A schedule that leaves the rate alone."""

    def step(self, cur_epoch: int, cur_step: int) -> None:
        pass


def steps(
    model: nn.Module, batches: list[Tensor], *, clip: float | None = None, accumulate: int = 1, **more: Any
) -> Any:
    """One epoch over these batches with plain gradient descent at rate 1; gives back the totals."""
    return train_steps(
        model,
        iter([{"x": batch} for batch in batches]),
        Epoch(0, len(batches)),
        optimizer=more.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=1.0),
        scheduler=more.pop("scheduler", None) or Constant(),
        settings=LoopSettings(accumulate=accumulate, clip=clip),
        watch=more.pop("watch", None) or FiniteWatch(),
        **more,
    )
