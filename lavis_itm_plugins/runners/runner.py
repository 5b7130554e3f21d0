"""`itm_runner`: LAVIS's runner with its own run folder, whole checkpoints, exact resume, and CPU, GPU or torchrun."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.distributed import barrier, copy_from_first_rank, from_first_rank, rank
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import starting_weights
from lavis_itm_plugins.registry import register_runner
from lavis_itm_plugins.runners.components import RunnerComponents
from lavis_itm_plugins.runners.loop import Epoch, Totals, call_hook, train_steps
from lavis_itm_plugins.runners.record import RunRecord, open_folder, resolved_config
from lavis_itm_plugins.runners.resuming import Resumer
from lavis_itm_plugins.runners.saving import CheckpointKeeper, new_average
from lavis_itm_plugins.runners.settings import parse_run, with_device
from lavis_itm_plugins.runners.state import TrainState, be_deterministic
from lavis_itm_plugins.runners.watch import FiniteWatch

log = logging.getLogger(__name__)


@register_runner("itm_runner")
class ItmRunner(RunnerComponents):
    """Trains, validates each epoch, keeps the best by rsum and the last, and tests the best at the end."""

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str) -> None:
        asked = parse_run(cfg.run_cfg)
        self.settings = with_device(asked)
        self.itm = self.settings.itm
        # LAVIS reads run keys as attributes and has no defaults of its own
        cfg.config.run = asdict(self.settings)
        self.resolved_config = resolved_config(cfg.config, asked)
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self.state = TrainState()
        self.watch = FiniteWatch(self.itm.on_nonfinite)
        self.average: Any = None
        self.record: RunRecord | None = None
        self.keeper = CheckpointKeeper(self)
        self.resumer = Resumer(self)

    def setup_output_dir(self) -> None:
        """Choose the run folder on the first rank, tell the others its path, and lock it."""
        self.folder = open_folder(self.settings, self.resolved_config)
        self.output_dir = self.result_dir = self.folder.path

    @property
    def scored_model(self) -> Any:
        """The weights that are evaluated: averaged ones with `run.itm.ema`."""
        return self._model if self.average is None else self.average.module

    def train(self) -> dict[str, Any]:
        """Run all epochs and the final test; gives back the test metrics by split."""
        be_deterministic(self.cuda_enabled)
        try:
            if self.settings.evaluate:
                return self._evaluate_only()
            self._start()
            with self.keeper.saving_on_signals():
                for epoch in range(self.state.epoch, self.settings.max_epoch):
                    if self._out_of_patience():
                        break
                    self._one_epoch(epoch)
            return self._finish()
        finally:
            if self.record is not None:
                self.record.close()
            self.folder.close()

    def evaluate_split(self, split: str) -> dict[str, float]:
        """Metrics of a split, on the first rank; the weights are those of `scored_model`."""
        model = self.scored_model
        training = model.training
        model.eval()
        metrics = self.task.evaluation(model, self.dataloaders[split])
        model.train(training)
        return metrics or {}

    def _start(self) -> None:
        """Resume if asked to, and write what the run is."""
        # made first: it gives every rank the first one's weights, which a hook may look at
        self.model.train()
        # and the loaders, since a checkpoint is checked against the data
        self._say_what_is_missing()
        if self.settings.resume_ckpt_path:
            self.resumer.resume(self.settings.resume_ckpt_path)
        if self.itm.ema is not None and self.average is None:
            self.average = new_average(self._model, self.itm.ema)
        if rank() == 0:
            self.state.lines = self.folder.keep_metrics(self.state.lines)
            call_hook(self._model, "write_assets", self.folder.path)
        self.record = RunRecord(self.folder, self.settings, self.resolved_config)
        call_hook(self._model, "before_training", self)
        self.resumer.restore_random()

    def _evaluate_only(self) -> dict[str, Any]:
        if hasattr(self._model, "evaluated") and not starting_weights(self.config.model_cfg):
            log.warning("no weights are given, so random ones are scored; set model.finetuned to a checkpoint")
        if not self.splits("test_splits"):
            raise ItmError(
                f"run.test_splits {self.settings.test_splits} names no split of the data; choose val or test"
            )
        if not from_first_rank(self.folder.holds_run()):
            self.record = RunRecord(self.folder, self.settings, self.resolved_config)
        results = {split: self.evaluate_split(split) for split in self.splits("test_splits")}
        if self.record is not None:
            for split, metrics in results.items():
                self.record.add({"epoch": 0, "split": split, **metrics})
        return results

    def _out_of_patience(self) -> bool:
        """Whether early stopping ends the run here."""
        waited = self.state.epoch - (self.state.best_epoch or 0)
        if self.itm.patience is None or self.state.best_epoch is None or waited < self.itm.patience:
            return False
        log.info("stopped early: no better rsum for %d epochs", waited)
        return True

    def _one_epoch(self, epoch: int) -> None:
        call_hook(self._model, "before_epoch", epoch, self)
        if self.state.step:
            # a checkpoint within an epoch was written after its hook
            self.resumer.restore_random()
        totals = self._train_steps(epoch)
        self._log({"epoch": epoch + 1, "split": "train", **totals.means(), **self._step_numbers()})
        self.state.epoch, self.state.step, self.state.totals = epoch + 1, 0, Totals()
        self._validate(epoch)
        self.keeper.save_last()
        self.keeper.stop_if_asked(saved=True)

    def _train_steps(self, epoch: int) -> Totals:
        """The steps of an epoch that are not done yet."""
        self.model.train()
        batches, loader = self.train_batches, self.dataloaders["train"]
        batches.epoch, batches.start = epoch, self.state.step
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(epoch)
        return train_steps(
            self.model,
            iter(loader),
            Epoch(epoch, batches.steps(), self.state.step, self.state.totals),
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            scaler=self.scaler,
            settings=self.loop_settings,
            watch=self.watch,
            after_step=self.keeper.after_step,
        )

    def _validate(self, epoch: int) -> None:
        """Score the validation splits; a better rsum writes checkpoint_best, and so does every epoch without any."""
        call_hook(self.scored_model, "before_validation", self)
        best, splits = self.state.best_rsum, self.splits("valid_splits")
        better = not splits
        for split in splits:
            metrics = self.evaluate_split(split)
            self._log({"epoch": epoch + 1, "split": split, **metrics})
            rsum = from_first_rank(metrics.get("rsum"))
            if split == splits[0] and (best is None or rsum > best):
                self.state.best_rsum, better = rsum, True
        if better:
            self.state.best_epoch = epoch + 1
            self.keeper.save_best()

    def _finish(self) -> dict[str, Any]:
        """Test the best weights."""
        barrier()
        splits = self.splits("test_splits")
        if splits and from_first_rank(self.folder.best.exists()):
            self.average = None
            if rank() == 0:
                self._model.load_state_dict(read_checkpoint(self.folder.best)["model"])
            copy_from_first_rank(self._model)
        results = {split: self.evaluate_split(split) for split in splits}
        for split, metrics in results.items():
            self._log({"epoch": self.state.best_epoch, "split": split, **metrics})
        log.info("run folder: %s", self.folder.path)
        return results

    def _step_numbers(self) -> dict[str, Any]:
        """What an epoch's line says beside its losses."""
        skipped = {"skipped": self.watch.skipped} if self.itm.on_nonfinite == "skip" else {}
        return {"lr": self.optimizer.param_groups[0]["lr"], **skipped}

    def _say_what_is_missing(self) -> None:
        """Say what the run does without."""
        loaders = self.dataloaders
        for key in ("valid_splits", "test_splits"):
            missing = [split for split in getattr(self.settings, key) if split not in loaders]
            if missing:
                log.warning("run.%s names %s, which the data do not have", key, ", ".join(missing))
        if not self.splits("valid_splits"):
            log.warning("no validation split: checkpoint_best is the last epoch's")

    def _log(self, line: dict[str, Any]) -> None:
        self.record.add(line)
        self.state.lines += 1
