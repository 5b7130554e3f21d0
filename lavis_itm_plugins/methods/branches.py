"""Several matchers that are trained side by side: each with randomness of its own, and their scores averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.base import Matcher


@contextmanager
def own_stream(device: torch.device, *key: int) -> Iterator[None]:
    """Inside, all generators start from `key` (whole numbers from 0); after it, they go on as if nothing was drawn."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus, enabled=bool(gpus)), seeded(*key):
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(torch.initial_seed())
        yield


def new_peer(first: Matcher, seed: int, number: int, *, same_start: bool) -> Matcher:
    """Another matcher of the same kind, with initial weights of its own unless `same_start`; same buffers."""
    with own_stream(first.device, seed, number):
        peer = type(first)(first.config, first.vocabulary)
    buffers = dict(first.named_buffers())
    start = {k: value for k, value in first.state_dict().items() if same_start or k in buffers}
    peer.load_state_dict({**peer.state_dict(), **start})
    return peer


class AveragedBranches(Matcher):
    """The mean of several matchers' scores as one matcher: a plain ensemble.

    What it encodes holds the branches' vectors side by side, so that it is gathered and cut like any other.
    """

    def __init__(self, branches: Sequence[Matcher]) -> None:
        super().__init__(None)
        self.branches = nn.ModuleList(branches)
        self.bytes_per_pair = sum(branch.bytes_per_pair for branch in branches)
        self.training = branches[0].training

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """The branches' encodings, joined along the last dimension."""
        return _joined([branch.encode_images(samples) for branch in self._all])

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """The branches' encodings, joined along the last dimension."""
        return _joined([branch.encode_captions(captions) for branch in self._all])

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Mean scores (n_images, n_captions)."""
        return self._mean(images, captions, lambda branch: branch.score)

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Mean scores (n,) of aligned pairs."""
        return self._mean(images, captions, lambda branch: branch.score_pairs)

    @property
    def _all(self) -> list[Any]:
        return list(self.branches)

    def _mean(self, images: Encoded, captions: Encoded, score_of: Callable[[Any], Callable[..., Tensor]]) -> Tensor:
        parts = zip(self._all, self._split(images), self._split(captions), strict=True)
        return torch.stack([score_of(branch)(*pair) for branch, *pair in parts]).mean(dim=0)

    def _split(self, encoded: Encoded) -> list[Encoded]:
        count = len(self.branches)
        pooled, regions = (
            [None] * count if value is None else value.chunk(count, dim=-1)
            for value in (encoded.pooled, encoded.regions)
        )
        return [Encoded(*vectors, encoded.mask) for vectors in zip(pooled, regions, strict=True)]


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Side by side; all branches see the same regions and words, so the first one's mask is that of all."""
    pooled, regions = ([getattr(part, name) for part in parts] for name in ("pooled", "regions"))
    return Encoded(
        None if pooled[0] is None else torch.cat(pooled, dim=-1),
        None if regions[0] is None else torch.cat(regions, dim=-1),
        parts[0].mask,
    )
