"""CODER's key tower: a moving copy of both branches, and the dictionaries of what it made."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.coder_branches import SIDES, ConceptBranch
from lavis_itm_plugins.methods.coder_config import DictionaryConfig
from lavis_itm_plugins.momentum import Dictionary, MomentumCopy, OwnCopy, momentum_copy

log = logging.getLogger(__name__)


# unit vectors (B, d) by branch ("instance", "concept") and side ("image", "caption")
Vectors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """What a batch leaves behind when its step is taken: keys by dictionary, and rows with their labels."""

    image_ids: Tensor
    items: Tensor | None
    keys: dict[str, Tensor]
    rows: Tensor
    codes: Tensor | None


def flat(vectors: Vectors) -> dict[str, Tensor]:
    """Vectors by the name of their dictionary, such as "image_concept"."""
    return {f"{side}_{name}": x.detach() for name, sides in vectors.items() for side, x in sides.items()}


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
        if isinstance(self.matcher, OwnCopy):
            log.info(
                "the matcher moves its own momentum towers; dictionary.momentum and ramp are of the concepts alone"
            )
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

    def restart(self) -> None:
        """Make the copies equal to what they are copies of, whose weights were replaced, and empty the rings."""
        for copy in (self.matcher, self.concept):
            if copy is not None:
                copy.update(0.0)
        self.forget()

    def forget(self) -> None:
        """Empty the rings, and begin the ramp of the momentum anew."""
        for ring in self.dictionaries.values():
            ring.clear()
        self.steps_taken.zero_()

    def store(self, step: Step) -> None:
        """Write a batch's keys over the oldest."""
        for name, ring in self.dictionaries.items():
            ring.enqueue(step.keys[name], step.image_ids, step.items)
