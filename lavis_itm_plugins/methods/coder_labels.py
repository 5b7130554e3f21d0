"""Pseudo cluster labels of CODER: prototypes that follow the instance vectors, and their prediction from concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lavis_itm_plugins.losses.prototypes import hard_codes, label_prediction_loss, moved_prototypes, sinkhorn_codes
from lavis_itm_plugins.methods.coder_branches import SIDES
from lavis_itm_plugins.methods.coder_config import LabelConfig


class PseudoLabels(nn.Module):
    """Prototypes shared by images and captions, and the classifier that predicts them from concept vectors."""

    def __init__(self, config: LabelConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("prototypes", normalize(torch.randn(config.prototypes, embed_dim), dim=1))
        self.classifier = nn.Parameter(normalize(torch.randn(config.prototypes, embed_dim), dim=1))

    @torch.no_grad()
    def codes(self, rows: Tensor, more: Tensor | None = None) -> Tensor:
        """Labels (n, P) of unit vectors (n, d), balanced over them and `more`; rows sum to 1."""
        everything = rows if more is None else torch.cat([rows, more])
        # divided by a small temperature: never in half precision
        with torch.autocast(rows.device.type, enabled=False):
            scores = everything.detach().to(self.prototypes.dtype) @ self.prototypes.T
        codes = sinkhorn_codes(scores, temperature=self.config.temperature, iterations=self.config.iterations)
        return codes[: len(rows)]

    def forward(self, concepts: Mapping[str, Tensor], codes: Tensor) -> Tensor:
        """The prediction loss, mean of both sides; `codes` (2 B, P) are the images', then the captions'."""
        image, caption = codes.chunk(2)
        targets = {
            "self": (image, caption),
            "swap": (caption, image),
            "mean": ((image + caption) / 2, (image + caption) / 2),
        }[self.config.pairing]
        if self.config.targets == "hard":
            targets = (hard_codes(targets[0]), hard_codes(targets[1]))
        temperature = self.config.prediction_temperature
        losses = [
            label_prediction_loss(concepts[side], target, self.classifier, temperature=temperature)
            for side, target in zip(SIDES, targets, strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def weight(self, batch: Mapping[str, Any]) -> float:
        """Of the loss at this step; it rises from 0, because labels of an untrained encoder are noise."""
        done = batch.get("epoch", 0) + batch.get("iters", 0) / max(batch.get("num_iters_per_epoch", 1), 1)
        warmup = self.config.warmup_epochs
        return self.config.weight * (min(done / warmup, 1.0) if warmup else 1.0)

    @torch.no_grad()
    def follow(self, rows: Tensor, codes: Tensor) -> None:
        """Move the prototypes towards their members; call it once after each optimiser step."""
        self.prototypes.copy_(moved_prototypes(self.prototypes, rows, codes, momentum=self.config.momentum))


def used(codes: Tensor) -> Tensor:
    """How many prototypes the labels use, as a share: exp(entropy of their mean) / P.

    >>> used(torch.eye(4)[:2])
    tensor(0.5000)
    """
    shares = codes.mean(dim=0)
    return torch.special.entr(shares).sum().exp() / codes.shape[1]
