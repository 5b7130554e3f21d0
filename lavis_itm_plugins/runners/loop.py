"""One epoch of training: forward, backward, clip, step, hooks, progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lavis_itm_plugins.runners.watch import FiniteWatch, position

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """How steps are taken."""

    accumulate: int = 1
    clip: float | None = None
    amp_dtype: torch.dtype | None = None
    log_every: int = 50


@dataclass
class Totals:
    """Sums over an epoch's steps, for the means that are logged; part of the checkpoint."""

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, parts: Mapping[str, Tensor], sound: bool = True) -> None:
        """Add one step's scalars, unless it is skipped; kept on their device, so that nothing waits for it."""
        if not sound:
            return
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()

    def means(self) -> dict[str, float]:
        """Mean of each scalar."""
        return {name: float(total) / max(self.steps, 1) for name, total in self.sums.items()}


@dataclass
class Epoch:
    """Where an epoch stands: its number, the steps in all and those already done, and their sums."""

    number: int
    steps: int
    done: int = 0
    totals: Totals = field(default_factory=Totals)


def train_steps(
    model: Any,
    batches: Iterator[Mapping[str, Any]],
    epoch: Epoch,
    *,
    optimizer: Any,
    scheduler: Any,
    scaler: Any = None,
    settings: LoopSettings = LoopSettings(),
    watch: FiniteWatch | None = None,
    after_step: Callable[[Epoch, bool], None] | None = None,
) -> Totals:
    """Take the remaining steps of an epoch and give back the sums of its losses.

    `after_step` is called when a step is complete (after accumulation), with the epoch's position and whether the
    weights moved.
    """
    stepper = _Stepper(model, optimizer, scheduler, scaler, settings, watch or FiniteWatch())
    scheduler.steps_per_epoch = epoch.steps
    bar = tqdm(total=epoch.steps, initial=epoch.done, desc=f"epoch {epoch.number + 1}", leave=False, disable=None)
    started, first = time.monotonic(), epoch.done
    optimizer.zero_grad(set_to_none=True)
    while epoch.done < epoch.steps:
        loss = stepper.accumulate(next(batches), epoch)
        epoch.done += 1
        bar.update()
        if epoch.done % settings.accumulate == 0 or epoch.done == epoch.steps:
            taken = stepper.step(epoch)
            if after_step is not None:
                after_step(epoch, taken)
        if epoch.done % settings.log_every == 0 or epoch.done == epoch.steps:
            log_progress(epoch, loss, optimizer, (time.monotonic() - started) / (epoch.done - first), bar)
    bar.close()
    return epoch.totals


class _Stepper:
    """Forward and backward of batches, and the optimiser step after a group of them."""

    def __init__(
        self, model: Any, optimizer: Any, scheduler: Any, scaler: Any, settings: LoopSettings, watch: FiniteWatch
    ) -> None:
        self.model, self.hooks = model, getattr(model, "module", model)
        self.optimizer, self.scheduler, self.scaler = optimizer, scheduler, scaler
        self.settings, self.watch = settings, watch
        self.device = next(self.hooks.parameters()).device
        self.sound = True

    def accumulate(self, samples: Mapping[str, Any], epoch: Epoch) -> Tensor:
        """Add one batch's gradients; gives back its loss."""
        samples = to_device(samples, self.device)
        samples.update(epoch=epoch.number, iters=epoch.done, num_iters_per_epoch=epoch.steps)
        set_rate(self.optimizer, self.scheduler, epoch)
        with autocast(self.device, self.settings.amp_dtype):
            output = self.model(samples)
        loss = output["loss"]
        if not self.watch.allows(loss, "the loss", position(epoch, epoch.done + 1)):
            self.sound = False
        epoch.totals.add({k: v for k, v in output.items() if isinstance(v, Tensor) and v.numel() == 1}, self.sound)
        loss = loss / group_size(epoch, self.settings.accumulate)
        # a bad loss is still sent backward: other ranks wait in its gradient exchange
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return output["loss"].detach()

    def step(self, epoch: Epoch) -> bool:
        """Clip, step, clear the gradients and call the hook; False for a group that a bad loss or gradient drops."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        taken = self._clip(epoch) and self.sound
        if self.scaler is not None:
            taken = self._scaled_step(epoch)
        elif taken:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sound = True
        if taken:
            self.watch.step_taken()
            call_hook(self.hooks, "after_step")
        return taken

    def _scaled_step(self, epoch: Epoch) -> bool:
        """A step under float16: the scaler leaves out a gradient that is not finite and lowers its scale."""
        before = self.scaler.get_scale()
        if self.sound:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        taken = self.sound and self.scaler.get_scale() >= before
        if self.sound and not taken:
            self.watch.scaler_skipped(position(epoch, epoch.done))
        return taken

    def _clip(self, epoch: Epoch) -> bool:
        """Clip each group of parameters; False when a norm is not finite. A scaler looks for that itself."""
        # the norm is looked at without clipping too: one bad gradient would end in NaN weights
        largest = math.inf if self.settings.clip is None else self.settings.clip
        finite = True
        for group in clip_groups(self.hooks):
            norm = torch.nn.utils.clip_grad_norm_(group, largest)
            if self.scaler is None and self.sound:
                finite = self.watch.allows(norm, "the gradient norm", position(epoch, epoch.done)) and finite
        return finite


def to_device(samples: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in samples.items()}


def set_rate(optimizer: Any, scheduler: Any, epoch: Epoch) -> None:
    """The scheduled rate, times each group's own factor: LAVIS's schedulers write one rate into every group."""
    scheduler.step(cur_epoch=epoch.number, cur_step=epoch.done)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Mixed precision in `dtype`, or nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def group_size(epoch: Epoch, accumulate: int) -> int:
    """How many batches share this optimiser step; the last group of an epoch may be smaller."""
    start = epoch.done - epoch.done % accumulate
    return min(accumulate, epoch.steps - start)


def clip_groups(model: Any) -> list[list[Any]]:
    """What is clipped together; everything for a model without the hook."""
    return model.clip_groups() if hasattr(model, "clip_groups") else [list(model.parameters())]


def call_hook(model: Any, name: str, *arguments: Any) -> None:
    """Call one of our hooks; LAVIS's own models have none."""
    hook = getattr(model, name, None)
    if hook is not None:
        hook(*arguments)


def log_progress(epoch: Epoch, loss: Tensor, optimizer: Any, seconds: float, bar: Any) -> None:
    """A line in the log, and the bar's numbers on a terminal."""
    value, rate = float(loss), optimizer.param_groups[0]["lr"]
    left = (epoch.steps - epoch.done) * seconds
    bar.set_postfix(loss=f"{value:.4f}", lr=f"{rate:.1e}")
    log.info(
        "epoch %d, step %d/%d: loss %.4f, lr %.2e, %.3f s a step, %.0f s left in this epoch",
        *(epoch.number + 1, epoch.done, epoch.steps, value, rate, seconds, left),
    )
