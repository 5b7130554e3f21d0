"""Checkpoints of a run: what is in them, when they are written, and what a signal does."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lavis_itm_plugins.checkpoints import write_checkpoint
from lavis_itm_plugins.distributed import any_rank, every_rank, rank
from lavis_itm_plugins.runners.state import random_state

log = logging.getLogger(__name__)


class CheckpointKeeper:
    """Writes `checkpoint_last` and `checkpoint_best` of a runner, and ends it when a signal asks for that."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.stop_signal: int | None = None

    def content(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything that a resumed run needs: all parameters and buffers, frozen ones too."""
        runner = self.runner
        return {
            **self._described(runner._model),
            "average": None if runner.average is None else runner.average.state_dict(),
            "optimizer": runner.optimizer.state_dict(),
            "scaler": None if runner.scaler is None else runner.scaler.state_dict(),
            "random": random_states,
            "data": runner.data_fingerprint,
            "items_per_step": runner.train_batches.global_batch,
            "order": order_of(runner),
        }

    def save_last(self) -> None:
        """Write checkpoint_last, keeping the one before as checkpoint_previous."""
        random_states = every_rank(random_state())
        self.runner.state.skipped = self.runner.watch.skipped
        if rank() == 0:
            folder = self.runner.folder
            write_checkpoint(folder.last, self.content(random_states), keep=folder.previous)

    def save_best(self) -> None:
        """Write the weights that were scored, and where they come from."""
        if rank() == 0:
            write_checkpoint(self.runner.folder.best, self._described(self.runner.scored_model))

    def _described(self, model: Any) -> dict[str, Any]:
        """Weights with the keys of LAVIS's own checkpoints, and our position."""
        state, config = self.runner.state, self.runner.resolved_config
        return {"model": model.state_dict(), "config": config, "epoch": state.epoch - 1, "train_state": state.as_dict()}

    def after_step(self, epoch: Any, taken: bool) -> None:
        """Average the weights, save when it is due, and stop when a signal asked for it."""
        runner = self.runner
        before = runner.state.step if runner.state.epoch == epoch.number else 0
        runner.state.epoch, runner.state.step = epoch.number, epoch.done
        if runner.average is not None and taken:
            runner.average.update_parameters(runner._model)
        every = runner.itm.save_every_steps
        # with accumulation a step may end past the multiple
        saved = bool(every) and epoch.done // every > before // every and epoch.done < epoch.steps
        if saved:
            self.save_last()
        self.stop_if_asked(saved=saved)

    def stop_if_asked(self, *, saved: bool = False) -> None:
        """Save and end the run when any rank got a signal."""
        if not any_rank(self.stop_signal is not None):
            return
        if not saved:
            self.save_last()
        number = self.stop_signal or signal.SIGTERM
        log.warning("stopped by signal %d; saved %s, go on with --resume", number, self.runner.folder.last)
        raise SystemExit(128 + number)

    @contextmanager
    def saving_on_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C save after the current step and end the run; a second Ctrl-C ends it at once."""

        def remember(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and self.stop_signal == number:
                raise KeyboardInterrupt
            self.stop_signal = number

        try:
            before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            # only the main thread may set handlers; a run in another thread ends as its owner says
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def order_of(runner: Any) -> dict[str, Any]:
    """What decides, beside the number of captions in a step, where an epoch stands after so many steps."""
    run = runner.settings
    return {"run.seed": run.seed, "run.itm.drop_last": run.itm.drop_last, "run.accum_grad_iters": run.accum_grad_iters}


def new_average(model: Any, decay: float) -> AveragedModel:
    """A moving average of the weights, starting from those after the first step."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
