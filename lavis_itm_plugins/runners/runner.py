"""`itm_runner`: LAVIS's runner with its own run folder, whole checkpoints, exact resume, and CPU, GPU or torchrun."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.data.fingerprint import fingerprint
from lavis_itm_plugins.data.joined import evaluation_set, training_set
from lavis_itm_plugins.distributed import barrier, from_first_rank, rank, world_size
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.registry import register_runner
from lavis_itm_plugins.runners.folder import RunFolder, describe_environment, run_path
from lavis_itm_plugins.runners.loaders import EpochBatches, EvalBatches, SeededItems, make_loader
from lavis_itm_plugins.runners.loop import Epoch, LoopSettings, Totals, call_hook, train_steps
from lavis_itm_plugins.runners.saving import CheckpointKeeper
from lavis_itm_plugins.runners.settings import parse_run, with_device
from lavis_itm_plugins.runners.sinks import MetricSinks
from lavis_itm_plugins.runners.state import TrainState
from lavis_itm_plugins.runners.watch import FiniteWatch

log = logging.getLogger(__name__)


@register_runner("itm_runner")
class ItmRunner(RunnerBase):
    """Trains, validates each epoch, keeps the best by rsum and the last, and tests the best at the end."""

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str) -> None:
        self.settings = with_device(parse_run(cfg.run_cfg))
        self.itm = self.settings.itm
        # LAVIS reads run keys as attributes and has no defaults of its own
        cfg.config.run = asdict(self.settings)
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self.state = TrainState()
        self.watch = FiniteWatch(self.itm.on_nonfinite)
        self.average = None
        self.keeper = CheckpointKeeper(self)

    def setup_output_dir(self) -> None:
        """Choose the run folder on the first rank, tell the others its path, and lock it."""
        run, arch = self.settings, self.config.model_cfg.arch
        path = from_first_rank(str(run_path(run.output_dir, self.itm.run_name, arch, run.resume_ckpt_path)))
        self.folder = RunFolder(Path(path))
        if rank() == 0:
            self.folder.open()
            if self.folder.holds_run() and not (run.resume_ckpt_path or run.evaluate):
                raise ItmError(f"{path} holds a run already; resume it, or choose another run.itm.run_name")
            self.folder.log_to_file()
        self.output_dir = self.result_dir = self.folder.path
        # LAVIS's tasks look both up here; its own runner refuses to register them twice in one process
        for name in ("result_dir", "output_dir"):
            registry.mapping["paths"][name] = path

    @property
    def model(self) -> Any:
        """The network on its device, wrapped for several processes."""
        if self._wrapped_model is None:
            self._wrapped_model = self._model = self._model.to(self.device)
            if world_size() > 1:
                self._wrapped_model = DistributedDataParallel(
                    self._model,
                    device_ids=[self.device.index or self.settings.gpu] if self.cuda_enabled else None,
                    find_unused_parameters=self.settings.find_unused_parameters,
                )
        return self._wrapped_model

    @property
    def optimizer(self) -> Any:
        """AdamW over the model's own parameter groups."""
        if self._optimizer is None:
            groups = self._model.to(self.device).param_groups() if hasattr(self._model, "param_groups") else None
            if groups is None:
                return super().optimizer
            for group in groups:
                group["weight_decay"] = self.settings.weight_decay if group.pop("decay") else 0.0
            self._optimizer = torch.optim.AdamW(groups, lr=self.settings.init_lr, betas=(0.9, self.settings.beta2))
        return self._optimizer

    @property
    def lr_scheduler(self) -> Any:
        """LAVIS's or our schedule by name."""
        if self._lr_sched is None:
            run = self.settings
            decay = {} if run.lr_decay_rate is None else {"decay_rate": run.lr_decay_rate}
            self._lr_sched = registry.get_lr_scheduler_class(run.lr_sched)(
                optimizer=self.optimizer,
                max_epoch=run.max_epoch,
                min_lr=run.min_lr,
                init_lr=run.init_lr,
                warmup_start_lr=run.warmup_lr,
                warmup_steps=run.warmup_steps,
                **decay,
            )
        return self._lr_sched

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The type of mixed precision, or None: bfloat16 where the device computes it, else float16 on a GPU."""
        if not self.settings.amp:
            return None
        if self.itm.amp_dtype != "auto":
            return getattr(torch, self.itm.amp_dtype)
        if not self.cuda_enabled or torch.cuda.is_bf16_supported():
            return torch.bfloat16
        return torch.float16

    @property
    def scaler(self) -> Any:
        """A gradient scaler when float16 is trained on a GPU."""
        if self._scaler is None and self.cuda_enabled and self.amp_dtype == torch.float16:
            self._scaler = torch.amp.GradScaler("cuda")
        return self._scaler

    @property
    def dataloaders(self) -> dict[str, Any]:
        """Loaders by split; `train` starts where `train_batches` says."""
        if self._dataloaders is None:
            self._dataloaders = {}
            train = training_set(self.datasets)
            if train is not None and not self.settings.evaluate:
                self._dataloaders["train"] = self._train_loader(train)
            for split in ("val", "test"):
                dataset = evaluation_set(self.datasets, split)
                if dataset is not None:
                    batches = EvalBatches(len(dataset), self.settings.batch_size_eval)
                    self._dataloaders[split] = self._loader(dataset, batches)
            self.datasets = {split: loader.dataset for split, loader in self._dataloaders.items()}
        return self._dataloaders

    @property
    def scored_model(self) -> Any:
        """The weights that are evaluated: averaged ones with `run.itm.ema`."""
        return self._model if self.average is None else self.average.module

    @cached_property
    def resolved_config(self) -> dict[str, Any]:
        """The project as it was run; LAVIS's `preprocess` section comes back from the default file."""
        whole = OmegaConf.to_container(self.config.config, resolve=True)
        return {section: whole[section] for section in ("model", "datasets", "run")}

    @cached_property
    def data_fingerprint(self) -> str:
        """Hash of the training data."""
        return fingerprint(self.dataloaders["train"].dataset)

    def train(self) -> dict[str, Any]:
        """Run all epochs and the final test; gives back the test metrics by split."""
        torch.use_deterministic_algorithms(not self.cuda_enabled, warn_only=True)
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
        if self.settings.resume_ckpt_path:
            self.keeper.resume(self.settings.resume_ckpt_path)
        if self.itm.ema is not None and self.average is None:
            self.average = self.keeper.new_average()
        if rank() == 0:
            self.folder.keep_metrics(self.state.lines)
            self.folder.write_text(self.folder.config, OmegaConf.to_yaml(OmegaConf.create(self.resolved_config)))
            environment = describe_environment(self.settings.seed)
            self.folder.write_text(self.folder.environment, json.dumps(environment, indent=2))
            call_hook(self._model, "write_assets", self.folder.path)
        self.sinks = self._new_sinks()
        log.info("run folder: %s", self.folder.path)
        self._say_missing_splits()
        call_hook(self._model, "before_training", self)

    def _evaluate_only(self) -> dict[str, Any]:
        results = {split: self.evaluate_split(split) for split in self._splits("test_splits")}
        if not results:
            raise ItmError(
                f"run.test_splits {self.settings.test_splits} names no split of the data; choose val or test"
            )
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
        self.model.train()
        self.train_batches.epoch, self.train_batches.start = epoch, self.state.step
        if hasattr(self.datasets["train"], "set_epoch"):
            self.datasets["train"].set_epoch(epoch)
        position = Epoch(epoch, self.train_batches.steps(), self.state.step, self.state.totals)
        totals = train_steps(
            self.model,
            iter(self.dataloaders["train"]),
            position,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            scaler=self.scaler,
            settings=self.loop_settings,
            watch=self.watch,
            after_step=self.keeper.after_step,
        )
        self._log({"epoch": epoch + 1, "split": "train", **totals.means(), "lr": self.optimizer.param_groups[0]["lr"]})
        self.state.epoch, self.state.step, self.state.totals = epoch + 1, 0, Totals()
        self._validate(epoch)
        self.keeper.save_last()

    def _validate(self, epoch: int) -> None:
        """Score the validation splits; a better rsum writes checkpoint_best, and so does every epoch without any."""
        best, splits = self.state.best_rsum, self._splits("valid_splits")
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
        splits = self._splits("test_splits")
        if splits and self.folder.best.exists():
            self.average = None
            self._model.load_state_dict(read_checkpoint(self.folder.best)["model"])
        results = {split: self.evaluate_split(split) for split in splits}
        for split, metrics in results.items():
            self._log({"epoch": self.state.best_epoch, "split": split, **metrics})
        self.sinks.close()
        log.info("run folder: %s", self.folder.path)
        return results

    @property
    def loop_settings(self) -> LoopSettings:
        """How this run takes its steps."""
        run = self.settings
        return LoopSettings(run.accum_grad_iters, self.itm.clip_grad, self.amp_dtype, run.log_freq)

    def _train_loader(self, dataset: Any) -> Any:
        if hasattr(self._model, "wrap_dataset"):
            dataset = self._model.wrap_dataset(dataset)
        if not isinstance(dataset, CaptionDataset):
            dataset = SeededItems(dataset, self.settings.seed)
        run = self.settings
        self.train_batches = EpochBatches(
            len(dataset), run.batch_size_train, seed=run.seed, drop_last=self.itm.drop_last
        )
        if not self.train_batches.steps():
            raise ItmError(
                f"{len(dataset)} training captions make no batch of {run.batch_size_train} for each of "
                f"{world_size()} processes; lower run.batch_size_train"
            )
        return self._loader(dataset, self.train_batches)

    def _loader(self, dataset: Any, batches: Any) -> Any:
        workers, seed = self.settings.num_workers, self.settings.seed
        return make_loader(dataset, batches, workers=workers, seed=seed, pin=self.cuda_enabled)

    def _splits(self, key: str) -> list[str]:
        """The splits that the run names and the data have."""
        return [split for split in getattr(self.settings, key) if split in self.dataloaders]

    def _say_missing_splits(self) -> None:
        """Say what the run does without."""
        for key in ("valid_splits", "test_splits"):
            missing = [split for split in getattr(self.settings, key) if split not in self.dataloaders]
            if missing:
                log.warning("run.%s names %s, which the data do not have", key, ", ".join(missing))
        if not self._splits("valid_splits"):
            log.warning("no validation split: checkpoint_best is the last epoch's")

    def _new_sinks(self) -> MetricSinks:
        first = rank() == 0
        tensorboard, wandb = self.itm.tensorboard and first, self.itm.wandb if first else None
        return MetricSinks(self.folder.path, tensorboard=tensorboard, wandb=wandb, config=self.resolved_config)

    def _log(self, line: dict[str, Any]) -> None:
        if rank() == 0:
            self.folder.add_metrics(line)
            self.sinks.add(line)
        self.state.lines += 1
