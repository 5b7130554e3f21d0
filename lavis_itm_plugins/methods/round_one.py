"""AOQ's round one as a teacher: what it thinks of a batch and of the items that it mined for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.distributed import gather_encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.frozen import FrozenAnchor
from lavis_itm_plugins.methods.offline import encode_with_mined


class RoundOne:
    """The frozen matcher of `candidates.source`.

    `content`, a hash of its weights, goes into the checkpoint: a run goes on with the teacher it began with.
    """

    def __init__(self, source: str, chunk: int | None = None) -> None:
        self.source, self.chunk = source, chunk
        self.content: str | None = None
        self._anchor: FrozenAnchor | None = None

    def load(self, device: torch.device, *, anew: bool) -> None:
        """Read it; `anew` for a run that begins. Raises ItmError when it is gone, or not what the run began with."""
        # a network that is built draws weights; training shall go on as if there was none
        with seeded(0):
            anchor = FrozenAnchor(self.source, self.chunk).to(device)
        if not anew:
            anchor.check_content(self.content, "with another round one")
        self.content, self._anchor = anchor.content, anchor

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        """`anchor` (B, B), `anchor_captions` (B, N) and `anchor_images` (N, B) of the batch of all ranks."""
        if self._anchor is None:
            raise ItmError(
                "aoq.distill reads round one in a hook that only itm_runner calls; set run.runner: itm_runner"
            )
        matcher, size = self._anchor.to(device).matcher, len(batch["text_input"])
        images, captions = encode_with_mined(matcher, batch, self.chunk)
        own_images, own_captions = gather_encoded(images[:size]), gather_encoded(captions[:size])
        return {
            "anchor": matcher.score(own_images, own_captions),
            "anchor_captions": matcher.score(own_images, gather_encoded(captions[size:])),
            "anchor_images": matcher.score(gather_encoded(images[size:]), own_captions),
        }

    def __deepcopy__(self, _memo: object) -> RoundOne:
        # an averaged copy of the model names the same teacher in its checkpoint
        return self
