"""What the networks with an image-text matching head share: what they keep while a batch is encoded, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lavis_itm_plugins.encoders.encoded import Encoded, concatenate
from lavis_itm_plugins.matchers.lavis_itm import itm_loss
from lavis_itm_plugins.matchers.lavis_network import LavisMatcher
from lavis_itm_plugins.methods.base import batch_image_ids


@dataclass
class LocalPass:
    """What this rank encoded in a training step, kept until its losses are computed."""

    image_states: Tensor | None = None
    images: Encoded | None = None
    tokens: Mapping[str, Tensor] | None = None
    captions: Encoded | None = None


class MatchingMatcher(LavisMatcher):
    """A network with a head; its encoders put into `self._local` what the loss looks at, if `self._matches`."""

    def build(self) -> None:
        """Make the network."""
        super().build()
        self._local = LocalPass()

    @property
    def _matches(self) -> bool:
        return self.config.matches and self.training and torch.is_grad_enabled()

    def take_states(self) -> LocalPass:
        """What was kept, which is then forgotten."""
        local, self._local = self._local, LocalPass()
        return local

    def keep_states(self, parts: Sequence[LocalPass]) -> None:
        """Keep what several chunks left as one."""
        given = {
            field.name: [value for part in parts if (value := getattr(part, field.name)) is not None]
            for field in fields(LocalPass)
        }
        joins = {"image_states": torch.cat, "images": concatenate, "tokens": _joined, "captions": concatenate}
        self._local = LocalPass(**{name: joins[name](values) for name, values in given.items() if values})

    def matching_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """LAVIS's matching loss of this rank's pairs; what a method encoded beyond them is left out."""
        local, size = self.take_states(), len(batch["text_input"])
        assert local.image_states is not None and local.images is not None
        assert local.tokens is not None and local.captions is not None
        scores = self.score(local.images[:size], local.captions[:size])
        return itm_loss(
            self.itm_logits,
            local.image_states[:size],
            {name: value[:size] for name, value in local.tokens.items()},
            scores.detach() / self.network.temp.detach(),
            batch_image_ids(batch, self.device),
            chunk=self.encode_chunk,
        )


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tokens (n, T, ...) of chunks with different T, padded with zeros, which the attention mask leaves out."""
    longest = max(part["attention_mask"].shape[1] for part in parts)
    padded = [{name: _longer(value, longest) for name, value in part.items()} for part in parts]
    return {name: torch.cat([part[name] for part in padded]) for name in parts[0]}


def _longer(value: Tensor, length: int) -> Tensor:
    return pad(value, [0, 0] * (value.dim() - 2) + [0, length - value.shape[1]])
