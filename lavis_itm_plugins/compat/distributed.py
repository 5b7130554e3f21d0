"""Repairs for one process without a process group, and for several on gloo."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist

from lavis_itm_plugins.compat.meeting import meet
from lavis_itm_plugins.compat.table import repair

# LAVIS waits 365 days, so a rank that died looks like a hang; this still covers mining on one rank while others wait
TIMEOUT = datetime.timedelta(hours=2)


class OneProcessDist:
    """`torch.distributed` for code that asks it without a process group: one rank, nobody to wait for."""

    def __getattr__(self, name: str) -> Any:
        answers = {"barrier": lambda *args, **kwargs: None, "get_rank": lambda: 0, "get_world_size": lambda: 1}
        return getattr(dist, name) if name not in answers or dist.is_initialized() else answers[name]


@repair(
    "ValueError: Default process group has not been initialized (after epoch 0)",
    "one process, CPU or GPU: the runners' barrier is skipped",
)
def runner_barrier() -> None:
    """Both runners call a barrier after each epoch, with one process too (runner_base.py:406, runner_iter.py:128)."""
    from lavis.runners import runner_base, runner_iter

    runner_base.dist = runner_iter.dist = OneProcessDist()


@repair(
    "ValueError: Default process group has not been initialized (CLIP forward)",
    "one process, CPU or GPU: CLIP's loss takes rank 0 of 1",
)
def clip_loss() -> None:
    """CLIP asks torch.distributed for its rank without looking whether there is a group (clip_models/model.py:507)."""
    from lavis.models.clip_models.loss import ClipLoss
    from lavis.models.clip_models.model import CLIP

    stock = CLIP.loss

    def loss(model: Any) -> Any:
        if dist.is_initialized():
            return stock.fget(model)
        if model._loss is None:
            model._loss = ClipLoss(rank=0, world_size=1)
        return model._loss

    CLIP.loss = property(loss, doc=stock.__doc__)


@repair(
    "ValueError: Default process group has not been initialized (BLIP and BLIP-2 forward)",
    "one process, CPU or GPU: their losses take rank 0 of 1 and gather nothing",
)
def blip_rank() -> None:
    """BLIP-2 asks for its rank, and both gather, without a group (blip2_qformer.py:153, base_model.py:208)."""
    from lavis.models.blip2_models import blip2_qformer
    from lavis.models.blip_models import blip_retrieval

    stock = blip2_qformer.all_gather_with_grad

    def all_gather_with_grad(tensors: torch.Tensor) -> torch.Tensor:
        return stock(tensors) if dist.is_initialized() else tensors

    blip2_qformer.dist = OneProcessDist()
    blip2_qformer.all_gather_with_grad = blip_retrieval.all_gather_with_grad = all_gather_with_grad


@repair(
    "AssertionError: Torch not compiled with CUDA enabled (end of an epoch under torchrun)",
    "any process group but NCCL: the meters are summed in CPU memory",
)
def meter_device() -> None:
    """Meters are summed over ranks in a tensor on "cuda", whatever the group can carry (common/logger.py:43)."""
    from lavis.common.logger import SmoothedValue

    stock = SmoothedValue.synchronize_between_processes

    def synchronize_between_processes(meter: Any) -> None:
        if not dist.is_initialized() or dist.get_backend() == "nccl":
            return stock(meter)
        sums = torch.tensor([meter.count, meter.total], dtype=torch.float64)
        dist.all_reduce(sums)
        meter.count, meter.total = int(sums[0]), sums[1].item()

    SmoothedValue.synchronize_between_processes = synchronize_between_processes


@repair(
    "AttributeError: module 'torch._C' has no attribute '_cuda_setDevice' (torchrun), "
    "ZeroDivisionError: integer modulo by zero (SLURM)",
    f"run.device cpu, or no CUDA: gloo in place of NCCL, a timeout of {TIMEOUT}, SLURM without ranks is one process; "
    "itm_runner on GPUs: NCCL with the same timeout; a start that waits for a process for minutes, not for a year",
)
def distributed_mode() -> None:
    """LAVIS starts NCCL, and divides a SLURM rank by the number of GPUs (common/dist_utils.py:58-90)."""
    from lavis.common import dist_utils

    stock = dist_utils.init_distributed_mode

    def init_distributed_mode(args: Any) -> None:
        gpu = torch.cuda.is_available() and str(args.get("device", "cuda")) != "cpu"
        launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if gpu and args.get("runner") != "itm_runner":
            return stock(args)
        args.distributed = launched
        if launched:
            _join_group(args, "nccl" if gpu else "gloo")
            dist_utils.setup_for_distributed(args.rank == 0)

    dist_utils.init_distributed_mode = init_distributed_mode


def _join_group(args: Any, backend: str) -> None:
    """Join the group that torchrun's environment variables describe, and note the same keys as LAVIS does."""
    args.rank, args.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    args.gpu, args.dist_backend = int(os.environ.get("LOCAL_RANK", 0)), backend
    if backend == "nccl":
        torch.cuda.set_device(args.gpu)
    store = meet(args.rank, args.world_size, args.get("dist_url", "env://"))
    dist.init_process_group(backend, store=store, rank=args.rank, world_size=args.world_size, timeout=TIMEOUT)
    dist.barrier()
