"""The `run` section: LAVIS's keys, checked, and ours under `run.itm`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lavis_itm_plugins.config.schema import parse, setting
from lavis_itm_plugins.config.source import where
from lavis_itm_plugins.data.relevance import LabelConfig
from lavis_itm_plugins.devices import check_device
from lavis_itm_plugins.errors import ItmError


@dataclass(frozen=True)
class GradedConfig:
    """`run.itm.graded`: metrics against continuous relevance labels, beside the recalls."""

    labels: LabelConfig | None = setting(None, help="source of the labels, such as {source: cider}; null: no metrics")
    queries: int | None = setting(500, low=1, help="drawn of each direction where there are more; null: all")
    relevant_above: float | None = setting(None, low=0, help="R-precision, mAP@R: a higher label counts as a match")


@dataclass(frozen=True)
class RerankConfig:
    """`run.itm.rerank`: only the best of another matcher are scored by the one that is evaluated."""

    checkpoint: str | None = setting(None, help="a fast matcher's checkpoint or run folder; null: score every pair")
    k: int = setting(64, low=1, help="candidates of each query")


@dataclass(frozen=True)
class ItmSettings:
    """`run.itm`: what `itm_runner` and `itm_retrieval` add to LAVIS."""

    run_name: str | None = setting(None, help="folder below run.output_dir; default: date, time and arch")
    clip_grad: float | None = setting(2.0, above=0, help="largest gradient norm; null switches clipping off")
    amp_dtype: str = setting("auto", choices=("auto", "bfloat16", "float16"), help="with run.amp: true")
    milestones: list[int] = setting([], low=1, help="itm_step_lr: epochs at which the rate is multiplied")
    drop_last: bool = setting(False, help="leave out the last, smaller training batch")
    ema: float | None = setting(None, above=0, below=1, help="evaluate a moving average of the weights")
    memory_budget_mb: int = setting(1024, low=1, help="for score tiles at evaluation")
    coco_1k_folds: int = setting(0, low=0, help="also report the mean over this many blocks of images; COCO has 5")
    rerank: RerankConfig = field(default_factory=RerankConfig)
    graded: GradedConfig = field(default_factory=GradedConfig)
    patience: int | None = setting(None, low=1, help="stop after so many epochs without a better rsum")
    on_nonfinite: str = setting("stop", choices=("stop", "skip"), help="when a loss or gradient is not finite")
    on_collapse: str = setting("warn", choices=("warn", "stop"), help="when all images get nearly the same vector")
    eval_branch: str | int = setting("target", help="itm_dbl: what is scored: target, anchor, average, or a number")
    tensorboard: bool = setting(False, help="also write metrics for TensorBoard")
    wandb: str | None = setting(None, help="Weights & Biases project that also gets the metrics")
    save_every_steps: int | None = setting(None, low=1, help="write checkpoint_last also within an epoch")

    def __post_init__(self) -> None:
        if self.rerank.checkpoint and self.coco_1k_folds:
            raise ItmError("rerank chooses candidates from the whole split; set coco_1k_folds: 0 beside it")


@dataclass(frozen=True)
class RunConfig:
    """The keys of `run` that LAVIS's runners, tasks and launchers read, and `itm`."""

    task: str = "itm_retrieval"
    runner: str = "itm_runner"
    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: float = setting(1e-3, above=0)
    min_lr: float = setting(0.0, low=0)
    warmup_lr: float = setting(-1.0)
    warmup_steps: int = setting(0, low=0)
    weight_decay: float = setting(0.0, low=0)
    lr_decay_rate: float | None = setting(None, above=0, high=1)
    beta2: float = setting(0.999, above=0, below=1)
    max_epoch: int = setting(1, low=0)
    batch_size_train: int = setting(128, low=1)
    batch_size_eval: int = setting(128, low=1)
    num_workers: int = setting(0, low=0)
    seed: int = setting(42, low=0)
    output_dir: str = "runs"
    amp: bool = False
    resume_ckpt_path: str | None = None
    evaluate: bool = False
    train_splits: list[str] = setting(["train"], choices=("train",))
    valid_splits: list[str] = setting([], choices=("val", "test"), help="scored after each epoch; the first chooses")
    test_splits: list[str] = setting([], choices=("val", "test"), help="scored at the end with the best weights")
    device: str = setting("auto", help="cpu, cuda, cuda:1; auto takes cuda where there is one, else cpu")
    world_size: int = setting(1, low=1)
    dist_url: str = "env://"
    dist_backend: str | None = None
    distributed: bool = False
    gpu: int | None = None
    rank: int | None = None
    accum_grad_iters: int = setting(1, low=1)
    log_freq: int = setting(50, low=1)
    use_dist_eval_sampler: bool = False
    find_unused_parameters: bool = False
    k_test: int | None = setting(None, low=1)
    itm: ItmSettings = field(default_factory=ItmSettings)


def parse_run(section: Any) -> RunConfig:
    """The `run` section as checked values."""
    return parse(RunConfig, section, where("run"))


def with_device(run: RunConfig) -> RunConfig:
    """The settings with `device: auto` decided; raises ItmError for a device that is not there."""
    return replace(run, device=check_device(run.device, "run.device"))


def parse_itm(run_section: Any) -> ItmSettings:
    """`run.itm` alone: for our task under one of LAVIS's runners."""
    return parse(ItmSettings, run_section.get("itm"), where("run.itm"))
