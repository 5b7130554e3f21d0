"""Learning-rate schedules beside LAVIS's two: a step decay at given epochs, and a cosine that moves every step."""

from __future__ import annotations

import math
from typing import Any

from lavis_itm_plugins.config.source import run_setting
from lavis_itm_plugins.registry import register_lr_scheduler


class _Scheduler:
    """What both share: linear warm-up over the first steps, then `rate(progress in epochs)`; LAVIS calls `step`."""

    def __init__(
        self,
        optimizer: Any,
        max_epoch: int,
        min_lr: float,
        init_lr: float,
        decay_rate: float | None = None,
        warmup_start_lr: float = -1,
        warmup_steps: int = 0,
        **_: Any,
    ) -> None:
        self.optimizer, self.max_epoch, self.min_lr, self.init_lr = optimizer, max_epoch, min_lr, init_lr
        self.decay_rate = decay_rate
        self.warmup_start_lr = max(warmup_start_lr, 0.0)
        self.warmup_steps = warmup_steps
        # the loop says how many steps an epoch has; LAVIS's own loop does not
        self.steps_per_epoch: int | None = None

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set every group's rate for this step."""
        done = cur_step + cur_epoch * (self.steps_per_epoch or 0)
        warming = done < self.warmup_steps and (cur_epoch == 0 or self.steps_per_epoch)
        rate = self.rate(cur_epoch + cur_step / (self.steps_per_epoch or math.inf))
        if warming:
            rate = self.warmup_start_lr + (self.init_lr - self.warmup_start_lr) * done / self.warmup_steps
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def rate(self, epochs_done: float) -> float:
        """The rate after so many epochs, without warm-up."""
        raise NotImplementedError("abstract")


@register_lr_scheduler("itm_step_lr")
class StepSchedule(_Scheduler):
    """`init_lr` times `run.lr_decay_rate` (default 0.1) at each epoch in `run.itm.milestones`."""

    def rate(self, epochs_done: float) -> float:
        """As the field's `lr_update`, but at any epochs."""
        milestones = (run_setting("itm") or {}).get("milestones") or []
        passed = sum(epochs_done >= milestone for milestone in milestones)
        return max(self.min_lr, self.init_lr * (0.1 if self.decay_rate is None else self.decay_rate) ** passed)


@register_lr_scheduler("itm_cosine_lr")
class CosineSchedule(_Scheduler):
    """Half a cosine from `init_lr` to `min_lr` over the whole run, moving with every step."""

    def rate(self, epochs_done: float) -> float:
        """The cosine at this point of the run."""
        progress = min(1.0, epochs_done / max(self.max_epoch, 1))
        return self.min_lr + (self.init_lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
