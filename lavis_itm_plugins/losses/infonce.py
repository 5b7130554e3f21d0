"""InfoNCE over the batch, in both directions: the contrastive loss of CLIP, with same-image cells left out."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.losses.scores import (
    check_scores,
    check_temperature,
    float32_island,
    surface_non_finite,
    valid_negatives,
)


@float32_island
def infonce_loss(scores: Tensor, *, temperature: float | Tensor = 0.05, positives: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image's caption among the batch's captions, and of each caption's image, averaged.

    With z = scores / temperature: ``mean_i(log sum_j exp z_ij - z_ii) / 2 + mean_j(log sum_i exp z_ij - z_jj) / 2``,
    where the sums run over the own pair and the valid negatives (Radford et al., CLIP, 2021, figure 3).

    Args:
        scores: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        temperature: above 0; a 0-d tensor gets a gradient.
        positives: bool (B, B), True where image ids match: such cells leave the denominator; the diagonal stays.

    Returns:
        A 0-d tensor. No valid negative gives 0, B = 0 too; a score that is not finite, anywhere, gives a loss that is
        not finite.

    Raises:
        ItmError: wrong shape or type, temperature not above 0.

    >>> infonce_loss(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), temperature=0.1)
    tensor(0.0012)
    >>> infonce_loss(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), positives=torch.ones(2, 2, dtype=torch.bool))
    tensor(0.)
    """
    check_scores(scores)
    check_temperature(temperature)
    valid = valid_negatives(scores, positives)
    if not len(scores):
        return scores.sum()
    logits = scores / temperature
    own = logits.diagonal()
    if positives is not None:
        logits = logits.masked_fill(~valid.fill_diagonal_(True), -torch.inf)
    loss = (logits.logsumexp(dim=1) + logits.logsumexp(dim=0) - 2 * own).mean() / 2
    return surface_non_finite(loss, scores)
