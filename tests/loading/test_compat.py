"""Each repair of LAVIS: the symptom is gone, and where its guard does not hold LAVIS's own code runs."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lavis.common import dist_utils
from lavis.common.logger import SmoothedValue
from lavis.models.blip2_models import blip2_qformer
from lavis.models.blip_models import blip_retrieval
from lavis.models.clip_models.model import CLIP
from lavis.runners import runner_base, runner_iter
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import base_task
from omegaconf import OmegaConf
from torch.utils.data import Dataset

from lavis_itm_plugins import compat
from lavis_itm_plugins.compat.device import LazyLoader


@pytest.fixture(autouse=True)
def applied():
    compat.apply()


@pytest.fixture
def group():
    """A process group of one, without a network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def runner(device="cpu", **run):
    """A stock runner without what its constructor does on disk."""
    made = RunnerBase.__new__(RunnerBase)
    config = {"device": device, "distributed": False, **run}
    made.config = SimpleNamespace(run_cfg=OmegaConf.create(config))
    made._device = made._wrapped_model = None
    made._model = torch.nn.Linear(2, 2)
    made._model.device = torch.device("cpu")
    return made


class Numbers(Dataset):
    def __init__(self):
        self.numbers = [0, 1, 2, 3]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.numbers[index]


def test_all_repairs_that_are_needed_are_applied_and_listed():
    listed = compat.repairs()
    assert len(listed) == len({repair.name for repair in listed}) == 9
    assert all(repair.applied for repair in listed if repair.needed)
    assert all(repair.symptom and repair.detail for repair in listed)


def test_applying_twice_wraps_once():
    before = RunnerBase.model, dist_utils.init_distributed_mode
    compat.apply()
    assert before == (RunnerBase.model, dist_utils.init_distributed_mode)


def test_the_runner_has_a_model_on_cpu():
    on_cpu = runner()
    assert on_cpu.model is on_cpu._model


def test_a_cuda_runner_keeps_lavis_own_model_property():
    on_gpu = runner(device="cuda")
    on_gpu._model = SimpleNamespace(device=torch.device("cuda"))
    assert on_gpu.model is None  # LAVIS's answer for a model that is already there; ours would have moved it


@pytest.mark.parametrize("find_unused", [False, True])
def test_ddp_on_cpu_gets_no_device_ids_and_the_yaml_setting(group, find_unused):
    wrapped = runner(distributed=True, gpu=0, find_unused_parameters=find_unused).model
    assert wrapped.device_ids is None
    assert wrapped.find_unused_parameters is find_unused


def loaders(on, dataset, num_workers=0):
    return on.create_loaders([dataset], num_workers, [2], [True], [None])[0]


def test_cpu_loaders_start_their_workers_at_the_first_batch():
    dataset = Numbers()
    loader = loaders(runner(), dataset, num_workers=1)
    dataset.numbers = [7, 7, 7, 7]
    assert next(loader).tolist() == [7, 7]
    assert len(loader) == 2


def test_cpu_loaders_leave_lavis_prefetch_loader_in_place():
    loaders(runner(), Numbers())
    assert runner_base.PrefetchLoader is not LazyLoader


def test_a_cuda_runner_keeps_lavis_prefetch_loader(monkeypatch):
    monkeypatch.setattr(runner_base, "PrefetchLoader", lambda loader: iter(["prefetched"]))
    assert next(loaders(runner(device="cuda"), Numbers())) == "prefetched"


def test_the_barrier_of_both_runners_needs_no_group():
    runner_base.dist.barrier()
    runner_iter.dist.barrier()
    assert runner_base.dist.get_world_size() == 1 and runner_base.dist.ReduceOp is dist.ReduceOp


def test_with_a_group_the_runners_wait_for_it(group):
    assert runner_base.dist.barrier is dist.barrier


def test_clip_has_a_loss_without_a_group():
    model = CLIP.__new__(CLIP)
    torch.nn.Module.__init__(model)
    model._loss = None
    assert (model.loss.rank, model.loss.world_size) == (0, 1)
    assert model.loss is model.loss


def test_blip_gathers_without_a_group():
    rows = torch.ones(2, 3)
    assert blip2_qformer.dist.get_rank() == 0
    assert blip2_qformer.all_gather_with_grad(rows) is rows
    assert blip_retrieval.all_gather_with_grad(rows) is rows


def test_meters_are_summed_over_a_gloo_group(group):
    meter = SmoothedValue()
    meter.update(3.0, n=2)
    meter.synchronize_between_processes()
    assert (meter.count, meter.total) == (2, 6.0)


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "3"}])
def test_no_ranks_means_one_process(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = OmegaConf.create({"device": "cpu", "distributed": True})
    dist_utils.init_distributed_mode(args)
    assert args.distributed is False and not dist.is_initialized()


def test_samples_stay_on_the_cpu_of_a_machine_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    samples = {"image": torch.ones(1)}
    assert base_task.prepare_sample(samples, cuda_enabled=True)["image"].device.type == "cpu"
