"""Candidate lists of a training set: mined by a matcher, kept in the run folder, made anew while training goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.data.datasets import CaptionDataset, CaptionEvalDataset
from lavis_itm_plugins.data.fingerprint import fingerprint
from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.distributed import barrier, copy_from_first_rank, from_first_rank, rank
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.encode import encode_split
from lavis_itm_plugins.methods.frozen import FrozenAnchor, content_of
from lavis_itm_plugins.mining import (
    Candidates,
    MiningJob,
    MiningSettings,
    build_candidates,
    data_identity,
    open_candidates,
)
from lavis_itm_plugins.mining.exclusions import Exclusions
from lavis_itm_plugins.mining.staleness import staleness
from lavis_itm_plugins.mining.store import META, text_digest
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader

log = logging.getLogger(__name__)

# Lists of checkpoint_last and of checkpoint_previous, and those being trained with.
KEPT = 3


@dataclass(frozen=True)
class CandidateConfig(MiningSettings):
    """`model.candidates`: which model finds the negatives, when, and how many of them."""

    source: str | None = setting(None, help="round one: run folder or checkpoint of any matcher, or mined lists")
    start_epoch: int = setting(0, low=0, help="plain training before the first mining (round one in the same run)")
    refresh_every: int = setting(0, low=0, help="epochs after which the trained matcher mines new lists; 0: never")
    memory_budget_mb: int = setting(1024, low=1, help="for score tiles while mining")

    def mining(self) -> MiningSettings:
        """What decides the lists, without when and where they are mined."""
        return MiningSettings(**{field.name: getattr(self, field.name) for field in fields(MiningSettings)})


class MinedLists:
    """Which candidate lists a run trains with; its state is in the checkpoint, the lists are in the run folder."""

    def __init__(self, plan: CandidateConfig) -> None:
        self.plan = plan
        self.history: list[str] = []
        self.epoch: int | None = None

    @property
    def state(self) -> dict[str, Any]:
        """Fingerprints of the last lists, the newest last, and the epoch they were mined for; plain types."""
        return {"history": list(self.history), "epoch": self.epoch}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with these lists."""
        self.history, self.epoch = list(state["history"]), state["epoch"]

    def forget(self) -> None:
        """Start without any lists."""
        self.history, self.epoch = [], None

    def __deepcopy__(self, memo: Any) -> MinedLists:
        # an averaged copy of the model trains with the same lists, and its checkpoint shall name the present ones
        return self

    def at(self, epoch: int, context: Any) -> Candidates:
        """The lists to train an epoch with; mined when it is due, by all ranks together.

        Raises ItmError when the lists of a run that goes on are gone, damaged, or of other data.
        """
        old = self._current(context) if self.history else None
        # a run that goes on within an epoch has its lists
        if old is not None and (context.state.step or not self._due(epoch)):
            return old
        new = self._made(context, first=old is None)
        log.info("candidate lists %s: %s", new.folder, _told(new.negatives.report))
        if old is not None:
            log.info("beside the lists before: %s", _told(staleness(old.negatives, new.negatives)))
        history = [*self.history, new.fingerprint]
        self.history, self.epoch = history[-KEPT:], epoch
        # no rank may still read what is deleted
        barrier()
        if rank() == 0:
            for gone in set(history) - set(self.history):
                shutil.rmtree(_root(context) / gone, ignore_errors=True)
        return new

    def _due(self, epoch: int) -> bool:
        every, since = self.plan.refresh_every, epoch - self.plan.start_epoch
        return bool(every) and since % every == 0 and self.epoch != epoch

    def _made(self, context: Any, *, first: bool) -> Candidates:
        """Lists of the source the first time, then of the weights that are evaluated."""
        dataset, source = context.dataloaders["train"].dataset, self.plan.source
        identity = training_identity(dataset)
        if first and source is not None and holds_lists(source):
            return open_candidates(source, identity)
        matcher = context.scored_model.evaluated()
        if first and source is not None:
            # a network that is built draws weights; training shall go on as if there was none
            with seeded(0):
                matcher = FrozenAnchor(source).to(matcher.device).matcher
        folder = mine_training_set(
            *(_root(context), matcher, dataset, self.plan.mining()),
            batch_size=context.settings.batch_size_eval,
            memory_budget_mb=self.plan.memory_budget_mb,
        )
        return open_candidates(folder, identity)

    def _current(self, context: Any) -> Candidates:
        identity = training_identity(context.dataloaders["train"].dataset)
        source, own = self.plan.source, _root(context) / self.history[-1]
        if not own.is_dir() and source is not None and holds_lists(source):
            given = open_candidates(source, identity)
            if given.fingerprint == self.history[-1]:
                return given
        return open_candidates(own, identity)


def holds_lists(source: str) -> bool:
    """Whether a source is a folder of mined lists, not a model."""
    return (user_path(source) / META).is_file()


def _root(context: Any) -> Path:
    folder: Path = context.folder.path / "candidates"
    return folder


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


class MatcherScores:
    """Scores of encoded images and captions by their matcher, for mining."""

    def __init__(self, matcher: Any, images: Encoded, captions: Encoded) -> None:
        self.n_images, self.n_captions = len(images), len(captions)
        self._matcher, self._images, self._captions = matcher, images, captions

    @torch.no_grad()
    def tile(self, images: slice, captions: slice) -> Tensor:
        """Scores (images, captions)."""
        return self._matcher.score(self._images[images], self._captions[captions])

    @torch.no_grad()
    def pairs(self, images: NDArray[np.int64], captions: slice) -> Tensor:
        """Scores (n,) of aligned pairs."""
        rows = torch.from_numpy(images).to(self._matcher.device)
        return self._matcher.score_pairs(self._images[rows], self._captions[captions])


def training_identity(dataset: CaptionDataset) -> dict[str, Any]:
    """What candidate lists of this training set must have been mined from."""
    split = dataset.split
    return data_identity(split.captions, split.caption_image, split.n_images, fingerprint(dataset), split.name)


def model_identity(matcher: Any) -> dict[str, Any]:
    """Which network with which weights and which words scored."""
    words = matcher.vocabulary.words if matcher.vocabulary else []
    settings = json.dumps(asdict(matcher.config), sort_keys=True)
    return {
        "arch": matcher.arch,
        "config": text_digest([settings]),
        "weights": content_of(matcher),
        "vocabulary": text_digest(words),
    }


@torch.no_grad()
def mine_training_set(
    root: Path,
    matcher: Any,
    dataset: CaptionDataset,
    settings: MiningSettings,
    *,
    batch_size: int = 128,
    memory_budget_mb: float = 1024,
) -> Path:
    """The folder below `root` with the lists of a training set by a matcher's scores; all ranks work, and all get it.

    The matcher is in evaluation mode meanwhile, and no region is dropped. Raises ItmError as `build_candidates`.
    """
    # batch statistics differ between ranks, and with them scores and the name of the folder
    copy_from_first_rank(matcher)
    made_from = from_first_rank(
        {"data": training_identity(dataset), "model": model_identity(matcher), "settings": asdict(settings)}
    )
    training = matcher.training
    matcher.eval()
    try:
        return build_candidates(root, _job(matcher, dataset, settings, batch_size, memory_budget_mb), made_from)
    finally:
        matcher.train(training)


def _job(
    matcher: Any, dataset: CaptionDataset, settings: MiningSettings, batch_size: int, memory_budget_mb: float
) -> MiningJob:
    """What is to be mined, with everything encoded."""
    view = CaptionEvalDataset(dataset.split)
    loader = make_loader(view, EvalBatches(len(view), batch_size), workers=0, seed=0, pin=False)
    images, captions, caption_image = encode_split(matcher, loader)
    scorer = MatcherScores(matcher, images, captions)
    texts = dataset.split.captions if settings.duplicates else None
    return MiningJob(
        scorer,
        caption_image,
        Exclusions(caption_image, len(images), captions=texts),
        settings.captions_per_image,
        settings.images_per_caption,
        settings.filters,
        memory_budget_mb,
        matcher.bytes_per_pair,
    )
