"""The plain matching loss that a YAML's `base_loss` names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.losses import infonce_loss, triplet_loss


@dataclass(frozen=True)
class BaseLoss:
    """`base_loss`: triplet or InfoNCE on a score matrix.

    >>> import torch
    >>> BaseLoss(name="triplet")(torch.eye(2))
    tensor(0.)
    """

    name: str = setting("infonce", choices=("infonce", "triplet"))
    margin: float = setting(0.2, low=0, help="triplet")
    negatives: str = setting("hardest", choices=("hardest", "all", "soft"), help="triplet")
    reduction: str = setting("sum", choices=("sum", "mean"), help="triplet")
    temperature: float | None = setting(None, above=0, help="0.05 for infonce, 0.01 for soft triplet negatives")
    warmup_epochs: int = setting(0, low=0, help="triplet: epochs that use all negatives first, against collapse")

    def __call__(self, scores: Tensor, positives: Tensor | None = None, *, epoch: int = 0) -> Tensor:
        """The loss of scores (B, B), a scalar."""
        if self.name == "infonce":
            return infonce_loss(scores, temperature=self.temperature or 0.05, positives=positives)
        return triplet_loss(
            scores,
            margin=self.margin,
            negatives="all" if epoch < self.warmup_epochs else self.negatives,
            temperature=self.temperature or 0.01,
            positives=positives,
            reduction=self.reduction,
        )
