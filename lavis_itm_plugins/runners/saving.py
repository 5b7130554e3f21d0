"""Checkpoints of a run: when they are written, what is in them, and how a run goes on from one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lavis_itm_plugins.checkpoints import read_checkpoint, write_checkpoint
from lavis_itm_plugins.distributed import any_rank, every_rank, rank
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.state import TrainState, random_state, set_random_state

log = logging.getLogger(__name__)


class CheckpointKeeper:
    """Writes `checkpoint_last` and `checkpoint_best` of a runner, and puts a runner back where one was written."""

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
        }

    def save_last(self) -> None:
        """Write checkpoint_last, keeping the one before as checkpoint_previous."""
        random_states = every_rank(random_state())
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

    def after_step(self, epoch: Any) -> None:
        """Average the weights, save when it is due, and stop when a signal asked for it."""
        runner = self.runner
        runner.state.epoch, runner.state.step = epoch.number, epoch.done
        if runner.average is not None:
            runner.average.update_parameters(runner._model)
        every = runner.itm.save_every_steps
        stopping = any_rank(self.stop_signal is not None)
        if stopping or (every and epoch.done % every == 0 and epoch.done < epoch.steps):
            self.save_last()
        if stopping:
            number = self.stop_signal or signal.SIGTERM
            log.warning("stopped by signal %d; saved %s, go on with --resume", number, runner.folder.last)
            raise SystemExit(128 + number)

    @contextmanager
    def saving_on_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C save after the current step and end the run."""

        def remember(number: int, _frame: Any) -> None:
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

    def resume(self, wanted: str) -> None:
        """Go on from a path, or with `auto` from the folder's last good checkpoint; none there is a fresh start."""
        candidates = [Path(wanted)] if wanted != "auto" else self.runner.folder.checkpoints()
        for path in candidates:
            try:
                stored = read_checkpoint(path)
                if wanted == "auto" and "train_state" not in stored:
                    raise ItmError(f"checkpoint {path} was not written by itm_runner")
            except ItmError as error:
                if wanted != "auto":
                    raise
                log.warning("%s; trying the one before", error)
                continue
            self._restore(stored, path)
            return
        if candidates:
            raise ItmError(f"no usable checkpoint in {self.runner.folder.path}; start afresh with another run_name")
        log.warning("nothing to resume in %s: starting afresh", self.runner.folder.path)

    def _restore(self, stored: dict[str, Any], path: Path) -> None:
        """Put weights, optimiser, position and generators back; say what a foreign checkpoint lacks."""
        runner = self.runner
        if "train_state" not in stored:
            self._restore_lavis(stored, path)
            return
        self._check_data(stored["data"], path)
        _load(runner._model, stored["model"], path)
        runner.optimizer.load_state_dict(stored["optimizer"])
        if runner.scaler is not None and stored["scaler"]:
            runner.scaler.load_state_dict(stored["scaler"])
        if stored["average"] is not None:
            runner.average = self.new_average()
            runner.average.load_state_dict(stored["average"])
        runner.state = TrainState.from_dict(stored["train_state"])
        set_random_state(stored["random"], rank())
        log.info("resumed %s: epoch %d, step %d", path, runner.state.epoch + 1, runner.state.step)

    def _restore_lavis(self, stored: dict[str, Any], path: Path) -> None:
        """A checkpoint of LAVIS's runner: weights, optimiser and epoch; it has no generators and no frozen weights."""
        runner = self.runner
        if "model" not in stored:
            raise ItmError(f"checkpoint {path} holds no `model`; give one of itm_runner or of LAVIS's runner")
        message = runner._model.load_state_dict(stored["model"], strict=False)
        if message.unexpected_keys:
            raise ItmError(f"checkpoint {path} is of another model: it has {message.unexpected_keys[0]}")
        runner.optimizer.load_state_dict(stored["optimizer"])
        runner.state.epoch = int(stored["epoch"]) + 1
        missing = f", {len(message.missing_keys)} frozen tensors" if message.missing_keys else ""
        log.warning("%s is LAVIS's own: it lacks the random state and the best score%s", path, missing)

    def _check_data(self, stored: str, path: Path) -> None:
        if stored != self.runner.data_fingerprint:
            raise ItmError(f"checkpoint {path} was trained on other data; use the same captions and images to resume")

    def new_average(self) -> AveragedModel:
        """A moving average of the weights, starting from those of now."""
        average = get_ema_multi_avg_fn(self.runner.itm.ema)
        model = self.runner._model.to(self.runner.device)
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _load(model: Any, state: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ItmError(f"checkpoint {path} does not fit this model: {lines[min(1, len(lines) - 1)]}") from None
