"""CODER's key tower: a moving copy of both branches, and the dictionaries of what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.coder_branches import SIDES, ConceptBranch
from lavis_itm_plugins.methods.coder_config import DictionaryConfig
from lavis_itm_plugins.momentum import Dictionary, MomentumCopy, momentum_copy


@dataclass(frozen=True)
class Step:
    """What a batch leaves behind when its step is taken: keys by dictionary, and rows with their labels."""

    image_ids: Tensor
    items: Tensor | None
    keys: dict[str, Tensor]
    rows: Tensor
    codes: Tensor | None


class KeyTower(nn.Module):
    """Copies of matcher and concept branch (None where they are not needed), and a ring for each side and branch.

    The rings are named `image_instance`, `caption_instance`, `image_concept` and `caption_concept`.
    """

    def __init__(
        self, matcher: nn.Module, concept: nn.Module | None, settings: DictionaryConfig, dim: int, *, copies: bool
    ) -> None:
        super().__init__()
        self.settings = settings
        self.matcher = momentum_copy(matcher, settings.momentum) if copies else None
        self.concept = MomentumCopy(concept, settings.momentum) if copies and concept is not None else None
        branches = ("instance",) if concept is None else ("instance", "concept")
        self.dictionaries = nn.ModuleDict(
            {f"{side}_{branch}": Dictionary(settings.size, dim) for branch in branches for side in SIDES}
        )
        self.register_buffer("steps_taken", torch.tensor(0))

    def copies(self) -> tuple[Any, ConceptBranch | None]:
        """Matcher and concept branch; raises ItmError when nothing asked for them."""
        if self.matcher is None:
            raise ItmError("this itm_coder has no key tower; set dictionary.size, or dcl.keys: momentum")
        return self.matcher.module, None if self.concept is None else self.concept.module

    def newest(self, count: int) -> Tensor | None:
        """So many of each side's newest instance keys; None for 0."""
        rings = [self.dictionaries[f"{side}_instance"] for side in SIDES]
        return torch.cat([ring.keys[ring.newest(count)] for ring in rings]) if count else None

    @property
    def filled(self) -> Tensor | None:
        """How full the rings are, from 0 to 1; None without any."""
        ring = self.dictionaries["image_instance"]
        return ring.filled / ring.capacity if ring.capacity else None

    def follow(self) -> None:
        """Move the copies towards what they are copies of; call it once after each optimiser step."""
        momentum, taken = self.settings.momentum, int(self.steps_taken)
        if self.settings.ramp:
            momentum = min(momentum, (1 + taken) / (10 + taken))
        for copy in (self.matcher, self.concept):
            if copy is not None:
                copy.update(momentum)
        self.steps_taken += 1

    def store(self, step: Step) -> None:
        """Write a batch's keys over the oldest."""
        for name, ring in self.dictionaries.items():
            ring.enqueue(step.keys[name], step.image_ids, step.items)
