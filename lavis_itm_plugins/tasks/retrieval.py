"""`itm_retrieval`: LAVIS's retrieval task with our loop and our metrics; runs under our runner and under LAVIS's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError

import torch
from lavis.common.dist_utils import is_main_process
from lavis.common.registry import registry
from lavis.tasks.retrieval import RetrievalTask

from lavis_itm_plugins.data.joined import check_splits
from lavis_itm_plugins.data.videos import with_frames_as_images
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import (
    evaluate_tiles,
    join_directions,
    matrix_block,
    retrieval_metrics,
    score_block,
)
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.matchers.encode import captions_of, encode_split
from lavis_itm_plugins.matchers.lavis_rerank import reranked_metrics
from lavis_itm_plugins.methods.base import Trainable
from lavis_itm_plugins.registry import register_task
from lavis_itm_plugins.runners.loop import Epoch, LoopSettings, train_steps
from lavis_itm_plugins.runners.settings import ItmSettings, parse_itm
from lavis_itm_plugins.runners.watch import FiniteWatch, check_collapse
from lavis_itm_plugins.tasks.graded import GradedEvaluation
from lavis_itm_plugins.tasks.reranking import reranked_scores, shared_score

log = logging.getLogger(__name__)


@register_task("itm_retrieval")
class ItmRetrievalTask(RetrievalTask):
    """Train with hooks, clipping and learning-rate factors; evaluate in tiles, select by rsum."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.graded = GradedEvaluation()

    def build_datasets(self, cfg: Any) -> dict[str, Any]:
        """LAVIS's datasets by name and split, checked against the splits that the run names."""
        try:
            datasets = super().build_datasets(cfg)
        except URLError as error:
            raise ItmError(
                f"annotations of {', '.join(cfg.datasets_cfg)} cannot be fetched ({error.reason}); where there is no "
                "network, give url and storage of each split the path of the same file"
            ) from None
        check_splits(datasets, self.cfg)
        model = registry.get_model_class(cfg.model_cfg.arch)
        # LAVIS's own video networks read its items as they are
        own = model is None or issubclass(model, Trainable)
        return with_frames_as_images(datasets) if own else datasets

    def train_epoch(
        self,
        epoch: int,
        model: Any,
        data_loader: Any,
        optimizer: Any,
        lr_scheduler: Any,
        scaler: Any = None,
        cuda_enabled: bool = False,
        log_freq: int = 50,
        accum_grad_iters: int = 1,
    ) -> dict[str, str]:
        """One epoch under one of LAVIS's runners; ours calls the loop itself, since it can also start in the middle."""
        settings = parse_itm(self.cfg)
        totals = train_steps(
            model,
            iter(data_loader),
            Epoch(epoch, len(data_loader)),
            optimizer=optimizer,
            scheduler=lr_scheduler,
            scaler=scaler,
            # LAVIS's runner makes a scaler for `run.amp`, which means float16 on a GPU
            settings=LoopSettings(
                accum_grad_iters, settings.clip_grad, torch.float16 if scaler and cuda_enabled else None, log_freq
            ),
            watch=FiniteWatch(settings.on_nonfinite),
        )
        return {name: f"{mean:.4f}" for name, mean in totals.means().items()}

    def evaluation(self, model: Any, data_loader: Any, **_: Any) -> dict[str, float] | None:
        """Metrics of a split on the first rank, None on the others."""
        model = getattr(model, "module", model)
        settings = parse_itm(self.cfg)
        matcher = chosen_branch(model, settings.eval_branch)
        if hasattr(matcher, "encode_images") and not settings.rerank.checkpoint:
            metrics, blocks = _of_all_pairs(matcher, data_loader, settings, self.cfg.get("k_test"))
        else:
            by_image, by_caption = self._by_direction(matcher, data_loader, settings)
            if is_main_process():
                caption_image = captions_of(data_loader.dataset)[1]
                metrics = join_directions(
                    retrieval_metrics(by_image, caption_image), retrieval_metrics(by_caption, caption_image)
                )
                blocks = matrix_block(by_image), matrix_block(by_caption)
        if not is_main_process():
            return None
        metrics |= self.graded.metrics(blocks, data_loader.dataset, settings.graded)
        log.info(
            "%d images, %d captions: %s", len(data_loader.dataset), len(data_loader.dataset.text), summary(metrics)
        )
        return metrics

    def _by_direction(self, matcher: Any, data_loader: Any, settings: ItmSettings) -> tuple[Any, Any]:
        """Scores to rank captions by, and images, where these differ: of shortlists, or of LAVIS's own networks."""
        rerank = settings.rerank
        if rerank.checkpoint:
            return reranked_scores(matcher, data_loader, rerank.checkpoint, rerank.k)
        # LAVIS's own networks re-rank each direction by themselves, and only the first rank has the whole
        by_image, by_caption = matcher.compute_sim_matrix(data_loader, task_cfg=self.cfg)
        return by_image, by_caption.T


def _of_all_pairs(
    matcher: Any, data_loader: Any, settings: ItmSettings, k_test: int | None
) -> tuple[dict[str, float], Any]:
    """Metrics of every image with every caption, and blocks of their scores; re-ranked ones beside them."""
    images, captions, caption_image = encode_split(matcher, data_loader)
    check_collapse(images, settings.on_collapse)
    limits: dict[str, Any] = {
        "memory_budget_mb": settings.memory_budget_mb,
        "bytes_per_pair": getattr(matcher, "bytes_per_pair", Matcher.bytes_per_pair),
    }
    metrics = evaluate_tiles(
        images,
        captions,
        shared_score(matcher),
        caption_image,
        **limits,
        folds=settings.coco_1k_folds,
        progress=True,
    )
    if k_test and getattr(matcher, "reranks", False):
        metrics |= reranked_metrics(matcher, data_loader, k_test, (images, captions))
    block = score_block(images, captions, matcher.score, **limits)
    return metrics, (block, block)


def chosen_branch(model: Any, name: str | int) -> Any:
    """What is scored of a model: what it deploys, or the branch that `run.itm.eval_branch` names.

    Raises ItmError for a branch that the model does not have.
    """
    if hasattr(model, "branch"):
        return model.branch(name)
    if name != "target":
        raise ItmError(f"run.itm.eval_branch is {name}, but {type(model).__name__} has one branch; leave it at target")
    return model.evaluated() if hasattr(model, "evaluated") else model


def summary(metrics: Mapping[str, float]) -> str:
    """The recalls and rsum on one line.

    >>> summary({f"{side}_r{k}": 50.0 for side in ("txt", "img") for k in (1, 5, 10)} | {"rsum": 300.0})
    'i2t R@1/5/10 50.0 50.0 50.0, t2i 50.0 50.0 50.0, rsum 300.0'
    """
    recalls = {side: " ".join(f"{metrics[f'{side}_r{k}']:.1f}" for k in (1, 5, 10)) for side in ("txt", "img")}
    tau = f", tau {metrics['tau']:.3f}" if "tau" in metrics else ""
    return f"i2t R@1/5/10 {recalls['txt']}, t2i {recalls['img']}, rsum {metrics['rsum']:.1f}{tau}"
