"""Where the anchor's scores come from: a frozen checkpoint or a momentum copy. (A peer's are those of its own step.)

Both have `scores(batch)`: (B, B) over the batch of all ranks, without a gradient, from a network that stays in
evaluation mode.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.data.datasets import CaptionDataset, CaptionEvalDataset
from lavis_itm_plugins.data.splits import AugmentingSource
from lavis_itm_plugins.distributed import gather_rows
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import DESCRIPTION, Matcher, matcher_state
from lavis_itm_plugins.matchers.encode import encode_split
from lavis_itm_plugins.matchers.loading import load_matcher
from lavis_itm_plugins.methods.base import encode_batch
from lavis_itm_plugins.momentum import MomentumCopy, OwnCopy
from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader

log = logging.getLogger(__name__)


class FrozenAnchor:
    """The matcher of a trained checkpoint, as it is.

    No module of the method: neither its state dictionary nor its optimiser nor `train()` reaches it. `content` is a
    hash of its weights, which tells whether a run goes on with the anchor it began with.
    """

    def __init__(self, path: str | Path, chunk: int | None = None) -> None:
        """It encodes so many items at a time. Raises ItmError when the file is missing or holds no matcher."""
        self.path = anchor_file(path)
        self.matcher = load_matcher(self.path).requires_grad_(False)
        self.content, self.chunk = content_of(self.matcher), chunk
        self._cached: tuple[Encoded, Encoded, Tensor] | None = None

    def to(self, device: torch.device) -> FrozenAnchor:
        """The anchor itself, now on the device."""
        self.matcher.to(device)
        return self

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Of the batch, from the cache when it is filled."""
        if self._cached is None:
            encoded = encode_batch(self.matcher, batch, self.chunk)
            return self.matcher.score(encoded.images, encoded.captions)
        images, captions, caption_image = self._cached
        device = self.matcher.device
        rows = gather_rows(batch["index"].to(device)).cpu()
        return self.matcher.score(images[caption_image[rows]].to(device), captions[rows].to(device))

    def fill_cache(self, dataset: CaptionDataset, batch_size: int) -> None:
        """Encode a training set once, over all ranks; held in memory on the CPU, by image and by caption row."""
        view = CaptionEvalDataset(dataset.split)
        loader = make_loader(view, EvalBatches(len(view), batch_size), workers=0, seed=0, pin=False)
        images, captions, caption_image = encode_split(self.matcher, loader)
        self._cached = images.to("cpu"), captions.to("cpu"), torch.from_numpy(caption_image)
        tensors = [value for part in self._cached[:2] for value in (part.pooled, part.regions) if value is not None]
        log.info(
            "dbl: the anchor's vectors of %d images and %d captions are kept (%.0f MB)",
            *(len(images), len(captions), sum(value.nbytes for value in tensors) / 2**20),
        )

    def can_cache(self, dataset: Any) -> bool:
        """Whether its scores are those of one vector for each image and caption of a data set of ours."""
        return isinstance(dataset, CaptionDataset) and type(self.matcher).score is Matcher.score

    def __deepcopy__(self, _memo: Any) -> FrozenAnchor:
        return self


def varies(dataset: CaptionDataset) -> bool:
    """Whether an image looks different from epoch to epoch."""
    if isinstance(dataset.split.images, AugmentingSource):
        return True
    return dataset.region_drop > 0 and dataset.split.images.fetch(np.array([0])).shape[1] > 1


def anchor_file(path: str | Path) -> Path:
    """The checkpoint that a person means: a file, or the best one of a run folder."""
    path = Path(path).expanduser()
    return path / "checkpoint_best.pth" if path.is_dir() else path


def check_anchor(anchor: str, matcher: Mapping[str, Any]) -> None:
    """Raise ItmError when there is no checkpoint, or one of another network, which the matcher shall start from.

    `matcher` is a checked section, whose `finetuned` is the anchor's file where the target starts as the anchor.
    """
    file = anchor_file(anchor)
    if not file.is_file():
        raise ItmError(
            f"model.dbl.anchor: {anchor} holds no checkpoint; train a plain matcher first and give its run folder"
        )
    if matcher.get("finetuned") != str(file):
        return
    described = matcher_state(read_checkpoint(file), str(file)).get(DESCRIPTION) or {}
    if described.get("arch", matcher["arch"]) != matcher["arch"]:
        raise ItmError(
            f"model.dbl.anchor: {anchor} holds a {described['arch']}, from which a target that is a {matcher['arch']} "
            "cannot start; set dbl.from_anchor: false"
        )


def content_of(module: nn.Module) -> str:
    """A short hash of every parameter and buffer by name."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class MomentumSchedule:
    """The momentum of each of a run's `steps` updates.

    First a line from `warmup_from` to `start` over `warmup` updates, then half a cosine from `start` to 1, or `start`
    for ever. (DBL's released code, MSS, whose scripts use no warm-up.)

    >>> schedule = MomentumSchedule(0.9, steps=4)
    >>> [round(schedule.at(step), 3) for step in range(4)]
    [0.9, 0.915, 0.95, 0.985]
    """

    start: float
    steps: int
    kind: str = "cosine"
    warmup: int = 0
    warmup_from: float = 0.0

    def at(self, step: int) -> float:
        """The momentum of the update after this step (from 0)."""
        if step < self.warmup:
            return self.warmup_from + (self.start - self.warmup_from) * step / max(self.warmup - 1, 1)
        if self.kind == "constant":
            return self.start
        progress = min(1.0, (step - self.warmup) / max(self.steps - self.warmup, 1))
        return 1 + 0.5 * (self.start - 1) * (1 + math.cos(math.pi * progress))

    def left(self) -> np.ndarray:
        """The share of the starting weights that is left after each update, (steps,)."""
        return np.cumprod([self.at(step) for step in range(self.steps)])

    def described(self, steps_per_epoch: int) -> str:
        """How fast the anchor follows, in words.

        >>> MomentumSchedule(0.99, steps=300).described(steps_per_epoch=100)
        'momentum 0.99 to 1: half of it is new after 73 updates (0.7 epochs), 22% of its start is left'
        """
        left = self.left()
        reached = np.flatnonzero(left <= 0.5)
        half = int(reached[0]) + 1 if len(reached) else None
        said = f"after {half} updates ({half / steps_per_epoch:.1f} epochs)" if half else "never in this run"
        rises = "" if self.kind == "constant" else " to 1"
        end = f"{left[-1]:.0%} of its start is left" if len(left) else "nothing is trained"
        return f"momentum {self.start:g}{rises}: half of it is new {said}, {end}"


class MovingAnchor(nn.Module):
    """What momentum anchors share: `module` scores the batch, and `updates` counts the target's steps."""

    module: Any
    updates: Tensor

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Of the batch."""
        encoded = encode_batch(self.module, batch)
        return self.module.score(encoded.images, encoded.captions)

    def check_moves(self, batch: Mapping[str, Any]) -> None:
        """Raise ItmError when the first epoch ended without an update: nobody calls the hooks after a step."""
        if batch.get("epoch", 0) and not batch.get("iters", 0) and not int(self.updates):
            raise ItmError(
                "the momentum anchor did not move in the first epoch, since this task tells the model of no step; "
                "set run.task: itm_retrieval"
            )


class OwnMomentumAnchor(MovingAnchor, OwnCopy):
    """The momentum towers that the target has for its own losses; it moves them with a constant momentum."""

    def advance(self, schedule: MomentumSchedule) -> None:
        """Count the update."""
        self.updates += 1


class MomentumAnchor(MovingAnchor, MomentumCopy):
    """A moving average of the target."""

    def advance(self, schedule: MomentumSchedule) -> None:
        """Move as the schedule says for this update."""
        self.update(schedule.at(int(self.updates)))
        self.updates += 1
