"""Every form of kendall_loss, a random batch for its tests, and its value with its gradient."""

from __future__ import annotations

import itertools

import torch

from lavis_itm_plugins.losses import kendall_loss

GLOBALS = kendall_loss.__wrapped__.__globals__  # of its own module, which --doctest-modules may import once more
SPLITS = ("halves", "all", "ends", "anchor", "none")
MININGS = ("hardest", "mean")
SURROGATES = ("hinge", "softplus", "tanh")
WAYS = list(itertools.product(SPLITS, MININGS, SURROGATES))


def value_and_gradient(scores: torch.Tensor, labels: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    loss = kendall_loss(leaf, labels, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(2, size, size, dtype=torch.float64, generator=generator)
    return 2 * scores - 1, labels
