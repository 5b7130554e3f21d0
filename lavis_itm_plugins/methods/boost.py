"""`model.dbl`: what an anchor is for, with which settings, and whether it does anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss, distillation_loss
from lavis_itm_plugins.losses.boosting import boosting_statistics
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.methods.moving import MomentumSchedule

log = logging.getLogger(__name__)

DISTILLATION = {
    "distill_ce": "cross_entropy",
    "distill_kl": "kl",
    "distill_reverse_kl": "reverse_kl",
    "distill_scores": "scores",
}
ASLEEP, SATURATED = 0.05, 0.95


@dataclass(frozen=True)
class BoostConfig:
    """`model.dbl`."""

    scenario: str = setting("momentum", choices=("momentum", "frozen", "peer"), help="where the anchor comes from")
    loss: str = setting("boost", choices=("boost", "contrastive", *DISTILLATION, "none"), help="what the anchor is for")
    form: str = setting("relative", choices=("relative", "absolute"), help="boost: widen gaps, or move each score")
    weight: float = setting(1.0, low=0, help="of the boost beside the base loss")
    weight_warmup: float = setting(0.0, low=0, help="epochs over which the weight grows from 0")
    beta: float = setting(1.0, low=0, help="boost: its margin is beta x base_loss.margin")
    gamma: float = setting(0.5, low=0, high=1, help="absolute boost: the positive pair's share of the margin")
    negatives: str = setting("hardest", choices=("hardest", "all"), help="boost: the negative that rose most, or all")
    margin_schedule: str = setting("none", choices=("none", "linear", "tanh"), help="boost: no more than is attainable")
    temperature: float = setting(0.1, above=0, help="contrastive and distill_*")
    reduction: str | None = setting(None, choices=("sum", "mean"), help="as the base loss when not given")
    anchor: str | None = setting(None, help="frozen: checkpoint or run folder of the anchor")
    from_anchor: bool = setting(True, help="frozen: the target starts as the anchor, unless matcher.finetuned is given")
    cache: str = setting("auto", choices=("auto", "always", "never"), help="frozen: keep the anchor's vectors")
    momentum: float = setting(0.9995, low=0, high=1, help="momentum: of the first update")
    momentum_schedule: str = setting("cosine", choices=("cosine", "constant"), help="momentum: to 1 over the run")
    momentum_warmup: float = setting(0.0, low=0, help="momentum: epochs in which it first rises from momentum_from")
    momentum_from: float = setting(0.9, low=0, high=1, help="momentum: where the warm-up starts")
    branches: int = setting(2, low=2, help="peer: matchers in all; the last is the target")
    mutual: bool = setting(False, help="peer: each learns from all others, not only from the earlier ones")
    same_start: bool = setting(False, help="peer: all start from the same random weights")

    def __post_init__(self) -> None:
        if self.mutual and self.scenario != "peer":
            raise ItmError(f"mutual is for scenario: peer; with {self.scenario} the anchor learns nothing")
        if self.anchor is not None and self.scenario != "frozen":
            raise ItmError(
                f"anchor is a checkpoint for scenario: frozen, and the scenario is {self.scenario}; drop one"
            )
        if self.cache == "always" and self.scenario != "frozen":
            raise ItmError(
                f"cache: always is for scenario: frozen; the anchor of {self.scenario} changes with each step"
            )

    def weight_at(self, batch: Mapping[str, Any]) -> float:
        """The weight at this point of the run: it grows with every step of the warm-up."""
        if not self.weight_warmup:
            return self.weight
        done: float = batch.get("epoch", 0) + batch.get("iters", 0) / batch.get("num_iters_per_epoch", 1)
        return self.weight * min(1.0, done / self.weight_warmup)

    def schedule(self, updates: int, updates_per_epoch: int, constant: float | None = None) -> MomentumSchedule:
        """The momentum of a run's updates; `constant` where a network moves its own towers."""
        if constant is not None:
            return MomentumSchedule(constant, updates, "constant")
        warmup = round(self.momentum_warmup * updates_per_epoch)
        return MomentumSchedule(self.momentum, updates, self.momentum_schedule, warmup, self.momentum_from)

    def loss_against(self, target: Tensor, anchor: Tensor, positives: Tensor | None, base: BaseLoss) -> Tensor:
        """The configured loss of target against anchor, both (B, B); every one sums or averages as the base loss does.

        A sum is over the 2B queries of both directions, a mean their mean, so that equal weights mean the same.
        """
        reduction = self.reduction or (base.reduction if base.name == "triplet" else "mean")
        common: dict[str, Any] = {"positives": positives, "reduction": reduction}
        if self.loss == "boost":
            shape = {**self._margins(base), "negatives": self.negatives, "margin_schedule": self.margin_schedule}
            return boosting_loss(target, anchor, **shape, **common)
        if self.loss == "contrastive":
            both = contrastive_boosting_loss(target, anchor, temperature=self.temperature, positives=positives)
            return both * len(target) if reduction == "sum" else both / 2
        return distillation_loss(target, anchor, form=DISTILLATION[self.loss], temperature=self.temperature, **common)

    def statistics(
        self, target: Tensor, anchors: Sequence[Tensor], positives: Tensor | None, base: BaseLoss
    ) -> dict[str, Tensor]:
        """`boosting_statistics` of the target, averaged over its anchors."""
        # the other losses have no margin: there a query is active while some negative gained as much as its positive
        margins = self._margins(base) if self.loss == "boost" else {"margin": 0.0}
        each = [boosting_statistics(target, anchor, **margins, positives=positives) for anchor in anchors]
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    def warn_of_own_momentum(self, arch: str) -> None:
        """Say which settings do nothing where the anchor is the momentum copy that a network has by itself."""
        defaults = BoostConfig()
        names = ("momentum", "momentum_schedule", "momentum_warmup", "momentum_from")
        ignored = [name for name in names if getattr(self, name) != getattr(defaults, name)]
        if ignored:
            log.warning(
                "model.dbl: %s is not used, since %s moves its own momentum towers, which are the anchor; set %s",
                *(", ".join(ignored), arch, "model.matcher.momentum"),
            )

    def _margins(self, base: BaseLoss) -> dict[str, Any]:
        return {"form": self.form, "margin": base.margin, "beta": self.beta, "gamma": self.gamma}


class ActivityLog:
    """Says at the end of each epoch whether the boost did anything in it."""

    def __init__(self, loss: str = "boost") -> None:
        """`loss` is `model.dbl.loss`; of `none` there is nothing to say."""
        self._loss = loss
        self._active: list[Tensor] = []

    def add(self, batch: Mapping[str, Any], told: Mapping[str, Tensor]) -> None:
        """One step's statistics; the batch says where in the epoch it stands."""
        step, steps = int(batch.get("iters", 0)), int(batch.get("num_iters_per_epoch", 1))
        if step == 0:
            self._active.clear()
        self._active.append(told["active_hinges"])
        if step + 1 == steps and self._loss != "none":
            log.info(
                "dbl: %s; in the last step positives gained %.3f over the anchor, mined negatives %.3f",
                activity(float(torch.stack(self._active).mean()), self._loss),
                *(float(told["positive_gain"]), float(told["negative_gain"])),
            )


def activity(active: float, loss: str = "boost") -> str:
    """The share of active hinges in words; the other losses have no hinges, and no margin to change.

    >>> activity(0.01)
    'the boost is asleep (1% of its hinges are active; a larger model.dbl.beta or another anchor asks for more)'
    >>> activity(0.4)
    'the boost is at work (40% of its hinges are active)'
    >>> activity(0.4, "distill_kl")
    'distill_kl: in 40% of the queries a negative gained more over the anchor than the positive'
    """
    if loss != "boost":
        return f"{loss}: in {active:.0%} of the queries a negative gained more over the anchor than the positive"
    share = f"{active:.0%} of its hinges are active"
    if active < ASLEEP:
        return f"the boost is asleep ({share}; a larger model.dbl.beta or another anchor asks for more)"
    if active > SATURATED:
        return f"the boost is saturated ({share}; a smaller model.dbl.beta would tell pairs apart)"
    return f"the boost is at work ({share})"
