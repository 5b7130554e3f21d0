"""Every choice of negatives of triplet_loss, and its value with its gradient."""

from __future__ import annotations

import torch

from lavis_itm_plugins.losses import triplet_loss

NEGATIVES = ("hardest", "all", "soft")


def value_and_gradient(scores: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    loss = triplet_loss(leaf, **options)
    loss.backward()
    return loss.detach(), leaf.grad
