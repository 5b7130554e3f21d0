"""How a run goes on from a checkpoint: its own last good one, a given one, or one of LAVIS's runner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.distributed import barrier, from_first_rank, rank
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.saving import new_average, order_of
from lavis_itm_plugins.runners.state import TrainState, set_random_state

log = logging.getLogger(__name__)

OWN_KEYS = frozenset(
    {"model", "optimizer", "scaler", "average", "random", "data", "items_per_step", "order", "train_state"}
)


class Resumer:
    """Puts a runner back where a checkpoint was written."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self._random: list[dict[str, Any]] | None = None
        self._unusable: list[Path] = []

    def resume(self, wanted: str) -> None:
        """Go on from a checkpoint, or with `auto` or a run folder from its last good one; none is a fresh start."""
        folder = self.runner.folder
        path = from_first_rank(self._choose(wanted) if rank() == 0 else None)
        if path is None:
            log.warning("nothing to resume in %s: starting afresh", folder.path)
            return
        self._restore(read_checkpoint(path), path)
        barrier()
        if rank() == 0:
            for damaged in self._unusable:
                folder.set_aside(damaged)
        state, last = self.runner.state, self.runner.settings.max_epoch
        if state.epoch >= last:
            log.info("%s is of a finished run (%d of %d epochs): testing it again", path, state.epoch, last)
        else:
            log.info("resumed %s: epoch %d, step %d", path, state.epoch + 1, state.step)

    def restore_random(self) -> None:
        """Put the random generators back; nothing after a fresh start. The last act before training goes on."""
        if self._random is not None:
            set_random_state(self._random, rank())

    def _choose(self, wanted: str) -> str | None:
        """The file to go on from, None when there is none yet; damaged and foreign ones are reported, and left out."""
        if wanted != "auto" and not Path(wanted).is_dir():
            return wanted
        candidates = self.runner.folder.checkpoints()
        for path in candidates:
            try:
                if not read_checkpoint(path).keys() >= OWN_KEYS:
                    raise ItmError(f"checkpoint {path} was not written by itm_runner")
                return str(path)
            except ItmError as error:
                log.warning("%s; trying the one before", error)
                self._unusable.append(path)
        if candidates:
            raise ItmError(
                f"no checkpoint in {self.runner.folder.path} can be used; start afresh with another run.itm.run_name"
            )
        return None

    def _restore(self, stored: dict[str, Any], path: str) -> None:
        """Put weights, optimiser, position and generators back; say what a foreign checkpoint lacks."""
        runner = self.runner
        if "train_state" not in stored:
            restore_lavis(runner, stored, path)
            return
        if not stored.keys() >= OWN_KEYS:
            raise ItmError(
                f"{path} holds weights alone; go on from checkpoint_last.pth, or start from it with model.finetuned"
            )
        state = TrainState.from_dict(stored["train_state"])
        self._check_fit(stored, state, path)
        load_weights(runner._model, stored["model"], path)
        load_optimizer(runner.optimizer, stored["optimizer"], path)
        if runner.scaler is not None and stored["scaler"]:
            runner.scaler.load_state_dict(stored["scaler"])
        if runner.itm.ema is not None and stored["average"] is not None:
            runner.average = new_average(runner._model, runner.itm.ema)
            runner.average.load_state_dict(stored["average"])
        runner.state, runner.watch.skipped = state, state.skipped
        self._random = stored["random"]

    def _check_fit(self, stored: dict[str, Any], state: TrainState, path: str) -> None:
        """Raise ItmError when the position in the data would mean something else now."""
        if stored["data"] != self.runner.data_fingerprint:
            raise ItmError(f"checkpoint {path} was trained on other data; use the same captions and images to resume")
        before, now = stored["items_per_step"], self.runner.train_batches.global_batch
        if state.step and before != now:
            raise ItmError(
                f"checkpoint {path} was written within an epoch of {before} captions a step, and now a step has {now}; "
                "choose run.batch_size_train so that times the number of processes it is the same"
            )
        for key, value in order_of(self.runner).items():
            if state.step and stored["order"][key] != value:
                raise ItmError(
                    f"checkpoint {path} was written within an epoch with {key}={stored['order'][key]}, now it is "
                    f"{value}; set it back, since the captions of this epoch would come in another order"
                )


def load_weights(model: Any, weights: dict[str, Any], path: str, *, strict: bool = True) -> Any:
    """Load a state dictionary; raises ItmError with the first key or size that does not fit."""
    try:
        return model.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ItmError(f"checkpoint {path} does not fit this model: {lines[min(1, len(lines) - 1)]}") from None


def load_optimizer(optimizer: Any, stored: dict[str, Any], path: str) -> None:
    """Load the optimiser's state; what the configuration sets stays as it is now."""
    settings = ("weight_decay", "betas", "lr_scale")
    now = [{key: group[key] for key in settings if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(stored)
    except ValueError as error:
        raise ItmError(f"checkpoint {path} does not fit this model's optimiser: {error}") from None
    for group, values in zip(optimizer.param_groups, now, strict=True):
        group.update(values)


def restore_lavis(runner: Any, stored: dict[str, Any], path: str) -> None:
    """A checkpoint of LAVIS's runner: weights, optimiser and epoch; it has no generators and no frozen weights."""
    if not stored.keys() >= {"model", "optimizer", "epoch"}:
        raise ItmError(f"checkpoint {path} lacks `model`, `optimizer` or `epoch`; start from it with model.finetuned")
    message = load_weights(runner._model, stored["model"], path, strict=False)
    if message.unexpected_keys:
        raise ItmError(f"checkpoint {path} is of another model: it has {message.unexpected_keys[0]}")
    trained = {name for name, parameter in runner._model.named_parameters() if parameter.requires_grad}
    lacking = trained.intersection(message.missing_keys)
    if lacking:
        raise ItmError(f"checkpoint {path} is of another model: it lacks {min(lacking)}")
    _load_lavis_optimizer(runner, stored["optimizer"])
    runner.state.epoch = int(stored["epoch"]) + 1
    frozen = f", {len(message.missing_keys)} frozen tensors" if message.missing_keys else ""
    log.warning("%s is LAVIS's own: it lacks the random state and the best score%s", path, frozen)


def _load_lavis_optimizer(runner: Any, stored: dict[str, Any]) -> None:
    """LAVIS numbers its parameters with the decayed ones first (runner_base.py:102-115); our groups are others."""
    decayed, others = [], []
    for name, parameter in runner._model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            (others if plain else decayed).append(parameter)
    for number, parameter in enumerate(decayed + others):
        # the step count stays on the CPU, as AdamW wants it
        entries = stored["state"].get(number, {}).items()
        runner.optimizer.state[parameter] = {
            key: value.to(parameter.device) if isinstance(value, Tensor) and key != "step" else value
            for key, value in entries
        }
