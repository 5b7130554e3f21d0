"""What a run is made of: network, optimiser, schedule, precision, loaders, each made when it is first asked for."""

from __future__ import annotations

from typing import Any

import torch
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from torch.nn.parallel import DistributedDataParallel

from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.data.fingerprint import fingerprint
from lavis_itm_plugins.data.joined import evaluation_set, training_set
from lavis_itm_plugins.distributed import world_size
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.loaders import EpochBatches, EvalBatches, SeededItems, make_loader
from lavis_itm_plugins.runners.loop import LoopSettings
from lavis_itm_plugins.runners.settings import RunConfig


class RunnerComponents(RunnerBase):
    """LAVIS's properties, in place of those that need CUDA or lose learning-rate factors; `settings` says how."""

    settings: RunConfig

    @property
    def model(self) -> Any:
        """The network on its device, wrapped for several processes."""
        if self._wrapped_model is None:
            self._wrapped_model = self._model = self._model.to(self.device)
            if world_size() > 1:
                self._wrapped_model = DistributedDataParallel(
                    self._model,
                    device_ids=[self._model.device.index] if self.cuda_enabled else None,
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
        if self.settings.itm.amp_dtype != "auto":
            return getattr(torch, self.settings.itm.amp_dtype)
        if self.cuda_enabled:
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if cpu_computes_bfloat16() else None

    @property
    def scaler(self) -> Any:
        """A gradient scaler when float16 is trained, whose small gradients would vanish."""
        if self._scaler is None and self.amp_dtype == torch.float16:
            self._scaler = torch.amp.GradScaler(self.device.type)
        return self._scaler

    @property
    def loop_settings(self) -> LoopSettings:
        """How this run takes its steps."""
        run = self.settings
        return LoopSettings(run.accum_grad_iters, run.itm.clip_grad, self.amp_dtype, run.log_freq)

    @property
    def dataloaders(self) -> dict[str, Any]:
        """Loaders by split; `train` starts where `train_batches` says."""
        if self._dataloaders is None:
            self._dataloaders = {}
            train = training_set(self.datasets)
            if train is not None and not self.settings.evaluate:
                # of the data alone, before a method adds anything to its items
                self.data_fingerprint = fingerprint(train)
                self._dataloaders["train"] = self._train_loader(train)
            for split in ("val", "test"):
                dataset = evaluation_set(self.datasets, split)
                if dataset is not None:
                    batches = EvalBatches(len(dataset), self.settings.batch_size_eval, shared=self._shares_evaluation)
                    self._dataloaders[split] = self._loader(dataset, batches)
            self.datasets = {split: loader.dataset for split, loader in self._dataloaders.items()}
        return self._dataloaders

    @property
    def _shares_evaluation(self) -> bool:
        """Whether each rank may encode its part: LAVIS's own networks expect every image on every rank."""
        matcher = self._model.evaluated() if hasattr(self._model, "evaluated") else self._model
        return hasattr(matcher, "encode_images")

    def _train_loader(self, dataset: Any) -> Any:
        if hasattr(self._model, "wrap_dataset"):
            dataset = self._model.wrap_dataset(dataset)
        if not isinstance(dataset, CaptionDataset):
            dataset = SeededItems(dataset, self.settings.seed)
        run = self.settings
        self.train_batches = EpochBatches(
            len(dataset), run.batch_size_train, seed=run.seed, drop_last=run.itm.drop_last
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

    def splits(self, key: str) -> list[str]:
        """The splits that the run names under this key and the data have."""
        return [split for split in getattr(self.settings, key) if split in self.dataloaders]


def cpu_computes_bfloat16() -> bool:
    """Whether the processor has bfloat16 instructions; without them mixed precision is slower than none."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
