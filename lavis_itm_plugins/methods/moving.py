"""Anchors that follow the target: a momentum copy, or the momentum towers that it has by itself.

Like a frozen one they have `scores(batch)`: (B, B) over the batch of all ranks, without a gradient, from a network that
stays in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.base import encode_batch
from lavis_itm_plugins.momentum import MomentumCopy, OwnCopy


@dataclass(frozen=True)
class MomentumSchedule:
    """The momentum of each of a run's `steps` updates.

    First a line from `warmup_from` to `start` over `warmup` updates, then half a cosine from `start` to 1, or `start`
    for ever. (DBL's released code, MSS, whose scripts use no warm-up.)

    >>> schedule = MomentumSchedule(0.9, steps=4)
    >>> [round(schedule.at(step), 3) for step in range(4)]
    [0.9, 0.915, 0.95, 0.985]
    """

    start: float
    steps: int
    kind: str = "cosine"
    warmup: int = 0
    warmup_from: float = 0.0

    def at(self, step: int) -> float:
        """The momentum of the update after this step (from 0)."""
        if step < self.warmup:
            return self.warmup_from + (self.start - self.warmup_from) * step / max(self.warmup - 1, 1)
        if self.kind == "constant":
            return self.start
        progress = min(1.0, (step - self.warmup) / max(self.steps - self.warmup, 1))
        return 1 + 0.5 * (self.start - 1) * (1 + math.cos(math.pi * progress))

    def left(self) -> np.ndarray:
        """The share of the starting weights that is left after each update, (steps,)."""
        return np.cumprod([self.at(step) for step in range(self.steps)])

    def described(self, steps_per_epoch: int) -> str:
        """How fast the anchor follows, in words.

        >>> MomentumSchedule(0.99, steps=300).described(steps_per_epoch=100)
        'momentum 0.99 to 1: half of it is new after 73 updates (0.7 epochs), 22% of its start is left'
        """
        left = self.left()
        reached = np.flatnonzero(left <= 0.5)
        half = int(reached[0]) + 1 if len(reached) else None
        said = f"after {half} updates ({half / steps_per_epoch:.1f} epochs)" if half else "never in this run"
        rises = "" if self.kind == "constant" else " to 1"
        end = f"{left[-1]:.0%} of its start is left" if len(left) else "nothing is trained"
        return f"momentum {self.start:g}{rises}: half of it is new {said}, {end}"


class MovingAnchor(nn.Module):
    """What momentum anchors share: `module` scores the batch, and `updates` counts the target's steps."""

    module: Any
    updates: Tensor

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Of the batch."""
        encoded = encode_batch(self.module, batch)
        return self.module.score(encoded.images, encoded.captions)

    def check_moves(self, batch: Mapping[str, Any]) -> None:
        """Raise ItmError when the first epoch ended without an update: nobody calls the hooks after a step."""
        if batch.get("epoch", 0) and not batch.get("iters", 0) and not int(self.updates):
            raise ItmError(
                "the momentum anchor did not move in the first epoch, since this task tells the model of no step; "
                "set run.task: itm_retrieval"
            )


class OwnMomentumAnchor(MovingAnchor, OwnCopy):
    """The momentum towers that the target has for its own losses; it moves them with a constant momentum."""

    def advance(self, schedule: MomentumSchedule) -> None:
        """Count the update."""
        self.updates += 1


class MomentumAnchor(MovingAnchor, MomentumCopy):
    """A moving average of the target."""

    def advance(self, schedule: MomentumSchedule) -> None:
        """Move as the schedule says for this update."""
        self.update(schedule.at(int(self.updates)))
        self.updates += 1
