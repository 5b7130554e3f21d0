"""Every form and weighting of diversity_contrastive_loss, and a random batch for its tests."""

from __future__ import annotations

import itertools

import torch

from lavis_itm_plugins.losses import diversity_contrastive_loss

KINDS = ("std", "none", "iso", "entropy", "adnce")
FORMS = ("nce", "lse")
WAYS = list(itertools.product(FORMS, KINDS))
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def batch(size: int = 4, slots: int = 7, dim: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Query, key, negatives on the unit sphere and a mask that leaves each query at least two negatives."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(2 * size + slots, dim, dtype=torch.float64, generator=generator)
    valid = torch.rand(size, slots, generator=generator) < 0.7
    valid[:, :2] = True
    return *torch.nn.functional.normalize(parts, dim=1).split([size, size, slots]), valid


def value_and_gradient(query: torch.Tensor, *others, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = query.detach().clone().requires_grad_()
    loss = diversity_contrastive_loss(leaf, *others, **options)
    loss.backward()
    return loss.detach(), leaf.grad
