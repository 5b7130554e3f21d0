"""The `model` section of `itm_aoq`, and which of its settings do not go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.candidates import CandidateConfig, holds_lists
from lavis_itm_plugins.methods.method import MethodConfig
from lavis_itm_plugins.mining.sampling import CROSS_PAIRS

OFFLINE = ("hinges", "logits", "shared")


@dataclass(frozen=True)
class QuintupletConfig:
    """`model.aoq`: the loss over mined negatives, and how they are drawn. Defaults are the official values."""

    adaptive: bool = setting(True, help="weigh online terms by how offline and online negatives compare; triplet only")
    pairs: bool = setting(True, help="also the two pairs without an anchor; false: the offline triplet alone")
    alpha: float = setting(0.3, above=0, help="the smaller, the more the weights vary")
    beta: float = setting(1.5, low=0, help="the weight where offline and online negatives are equally hard")
    weight_min: float | None = setting(None, help="lower limit of the weights; null: none, they may be negative")
    detach_weights: bool = setting(False, help="no gradient through the weights")
    offline_margin: float = setting(0.0, low=0)
    offline_weight: float = setting(1.0, low=0, help="factor of the offline terms; 1 in the paper")
    offline: str = setting("hinges", choices=OFFLINE, help="logits, shared: in InfoNCE's denominators (ours)")
    cross_pair: str = setting("mask", choices=CROSS_PAIRS, help="when both mined items are of one image")
    tie_ranks: bool = setting(True, help="one draw for the ranks in both lists, as in the official code")
    distill: float = setting(0.0, low=0, help="weight of round one's opinion of batch and mined items; offline: shared")
    distill_temperature: float = setting(0.05, above=0)
    draws: int = setting(1, low=1, help="mined captions and images for each pair; more than 1 with offline: shared")
    draw_captions: int | None = setting(None, low=1, help="draw from so many of the hardest; null: the whole list")
    draw_images: int | None = setting(None, low=1)


@dataclass(frozen=True)
class AoqConfig(MethodConfig):
    """The `model` section of `itm_aoq`."""

    init: str = setting("scratch", choices=("scratch", "checkpoint"), help="checkpoint: start from candidates.source")
    aoq: QuintupletConfig = field(default_factory=QuintupletConfig)
    candidates: CandidateConfig = field(default_factory=CandidateConfig)


def check_aoq(config: AoqConfig, section: str) -> None:
    """Raise ItmError for settings that do not go together."""
    aoq = config.aoq
    if aoq.offline != "hinges" and config.base_loss.name != "infonce":
        raise ItmError(f"{section}.aoq.offline: {aoq.offline} needs base_loss.name: infonce; choose hinges")
    if aoq.draws > 1 and aoq.offline != "shared":
        raise ItmError(f"{section}.aoq.draws: {aoq.draws} needs offline: shared; draw once")
    if aoq.distill and aoq.offline != "shared":
        raise ItmError(f"{section}.aoq.distill: {aoq.distill} needs offline: shared; set 0")
    if aoq.distill and not _has_model(config):
        raise ItmError(
            f"{section}.aoq.distill: {aoq.distill} needs a run folder or a checkpoint as candidates.source, whose "
            "scores are the example; set 0"
        )
    if config.init == "checkpoint" and not _has_model(config):
        raise ItmError(f"{section}.init: checkpoint needs a run folder or a checkpoint as candidates.source")


def _has_model(config: AoqConfig) -> bool:
    source = config.candidates.source
    return source is not None and not holds_lists(source)
