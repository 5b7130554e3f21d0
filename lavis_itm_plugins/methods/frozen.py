"""A trained matcher that scores beside the one in training: DBL's frozen anchor, AOQ's round one.

Its `scores(batch)` are (B, B) over the batch of all ranks, without a gradient, from a network in evaluation mode.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
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
from lavis_itm_plugins.paths import user_path
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

    def check_content(self, required: str | None, trained: str) -> None:
        """Raise ItmError when these are not the weights whose hash the run's checkpoint tells, if it does.

        `trained` is how the run was trained with them, such as "against another anchor".
        """
        if required not in (None, self.content):
            raise ItmError(
                f"the run was trained {trained} than {self.path} holds now (its weights hash to {self.content}, not "
                f"{required}); put that checkpoint back, or start a new run"
            )

    def cache(self, dataset: Any, batch_size: int, wanted: str) -> None:
        """Keep a training set's vectors as `model.dbl.cache` says: always, never, or auto, if no image varies.

        Raises ItmError for always where it cannot.
        """
        possible = self.can_cache(dataset)
        if wanted == "always" and not possible:
            raise ItmError(
                "model.dbl.cache: always, but the anchor has no single vector for each image, or the data set is none "
                "of this plugin; set auto"
            )
        if possible and (wanted == "always" or (wanted == "auto" and not varies(dataset))):
            self.fill_cache(dataset, batch_size)

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
    path = user_path(path)
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
