"""Repairs for a machine, or a `run.device`, without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lavis_itm_plugins.compat.table import repair, without_cuda


@repair(
    "AttributeError: 'NoneType' object has no attribute 'train'",
    "run.device cpu: the runner returns its model though it need not be moved, DDP gets no device_ids; "
    "run.find_unused_parameters reaches DDP on any device",
)
def runner_model() -> None:
    """LAVIS wraps the model only when it has to be moved to another device (runner_base.py:85)."""
    from lavis.runners.runner_base import RunnerBase

    stock = RunnerBase.model

    def model(runner: Any) -> Any:
        unused = bool(runner.config.run_cfg.get("find_unused_parameters", False))
        if runner.cuda_enabled and not (unused and runner.use_distributed):
            return stock.fget(runner)
        if runner._wrapped_model is None:
            runner._model = runner._model.to(runner.device)
            runner._wrapped_model = _in_ddp(runner, unused) if runner.use_distributed else runner._model
        return runner._wrapped_model

    RunnerBase.model = property(model, doc=stock.__doc__)


def _in_ddp(runner: Any, find_unused_parameters: bool) -> torch.nn.Module:
    # DDP refuses device_ids for a CPU module
    device_ids = [runner.config.run_cfg.gpu] if runner.cuda_enabled else None
    return torch.nn.parallel.DistributedDataParallel(
        runner._model, device_ids=device_ids, find_unused_parameters=find_unused_parameters
    )


class LazyLoader:
    """A loader whose workers start at the first batch, as those of LAVIS's PrefetchLoader do, and that uses no CUDA.

    A plain DataLoader would start them when the runner is built: they would never see what a task mined before epoch 0.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


@repair(
    "RuntimeError: torch.cuda.Stream requires CUDA support",
    "run.device cpu: loaders are built around LazyLoader in place of PrefetchLoader",
)
def cpu_loaders() -> None:
    """LAVIS copies every batch on a CUDA stream, whatever run.device says (runner_base.py:540)."""
    from lavis.runners import runner_base

    stock = runner_base.RunnerBase.create_loaders

    def create_loaders(runner: Any, *args: Any, **kwargs: Any) -> Any:
        if runner.cuda_enabled:
            return stock(runner, *args, **kwargs)
        prefetch, runner_base.PrefetchLoader = runner_base.PrefetchLoader, LazyLoader
        try:
            return stock(runner, *args, **kwargs)
        finally:
            runner_base.PrefetchLoader = prefetch

    runner_base.RunnerBase.create_loaders = create_loaders


@repair(
    "AssertionError: Torch not compiled with CUDA enabled (evaluation of captioning, VQA)",
    "no CUDA: batches stay where they are though the task asks for CUDA",
    needed=without_cuda,
)
def sample_device() -> None:
    """BaseTask.evaluation moves batches to CUDA unless told otherwise, and the runner does not (base_task.py:79)."""
    from lavis.tasks import base_task

    stock = base_task.prepare_sample

    def prepare_sample(samples: Any, cuda_enabled: bool = True) -> Any:
        return stock(samples, cuda_enabled=cuda_enabled and torch.cuda.is_available())

    base_task.prepare_sample = prepare_sample
