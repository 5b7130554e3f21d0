"""Losses over mined negatives alone, to add to any loss over the batch: hinges (AOQ's), or terms of InfoNCE (ours).

Of pair i, with a mined negative caption T3 of I1, a mined negative image I3 of T1, I4 the image of T3 and T4 a caption
of I3: ``offline_captions`` = s(I1, T3), ``offline_images`` = s(I3, T1), ``offline_pairs`` = s(I3, T3) and
``partner_pairs`` = s(I4, T4), each (B,). ``pair_mask`` (B,) False leaves out the last two of a pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.hinges import REDUCTIONS
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_number,
    check_scores,
    check_temperature,
    float32_island,
    surface_non_finite,
    valid_negatives,
)


@float32_island
def offline_hinge_loss(
    scores: Tensor,
    *,
    offline_captions: Tensor,
    offline_images: Tensor,
    offline_pairs: Tensor,
    partner_pairs: Tensor,
    offline_margin: float = 0.0,
    pair_mask: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """A pair must score above four pairs made of mined negatives: the offline terms of ``quintuplet_loss``.

    ``scores`` (B, B): only its diagonal, the positive pairs, is used. Reduction "sum" | "mean": the sum / B. Raises
    ItmError as ``quintuplet_loss``.

    >>> mined = torch.tensor([0.8, 0.6])
    >>> offline = {"offline_captions": mined, "offline_images": mined, "offline_pairs": mined, "partner_pairs": mined}
    >>> offline_hinge_loss(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), **offline, offline_margin=0.2)
    tensor(0.8000)
    """
    offline = stacked_offline(scores, offline_captions, offline_images, offline_pairs, partner_pairs, pair_mask)
    check_number("offline_margin", offline_margin, at_least=0)
    check_choice("reduction", reduction, REDUCTIONS)
    own = scores.diagonal()
    loss = offline_hinges(own, offline, offline_margin, pair_mask).sum()
    if not len(scores):
        return loss
    return surface_non_finite(loss if reduction == "sum" else loss / len(scores), own, offline)


@float32_island
def offline_infonce_loss(
    scores: Tensor,
    *,
    offline_captions: Tensor,
    offline_images: Tensor,
    offline_pairs: Tensor,
    partner_pairs: Tensor,
    temperature: float | Tensor = 0.05,
    positives: Tensor | None = None,
    pair_mask: Tensor | None = None,
) -> Tensor:
    """``infonce_loss`` whose sums over negatives also hold the mined ones.

    An image's denominator gains s(I1, T3), a caption's s(I3, T1), and both of a pair gain s(I3, T3) and s(I4, T4). No
    paper's loss: AOQ's four offline scores in place of further negatives of a larger batch. Raises ItmError as
    ``infonce_loss`` and ``quintuplet_loss``.

    >>> scores, low = torch.eye(2), torch.full((2,), -99.0)
    >>> offline = {"offline_captions": low, "offline_images": low, "offline_pairs": low, "partner_pairs": low}
    >>> offline_infonce_loss(scores, **offline, temperature=1.0)        # as infonce_loss: the mined ones are no match
    tensor(0.3133)
    """
    offline = stacked_offline(scores, offline_captions, offline_images, offline_pairs, partner_pairs, pair_mask)
    check_temperature(temperature)
    valid = valid_negatives(scores, positives).fill_diagonal_(True)
    if not len(scores):
        return scores.sum() + offline.sum()
    online, mined = scores.masked_fill(~valid, -torch.inf) / temperature, offline / temperature
    if pair_mask is not None:
        mined = torch.cat([mined[:2], mined[2:].masked_fill(~pair_mask, -torch.inf)])
    by_image = torch.cat([online, mined[[0, 2, 3]].t()], dim=1).logsumexp(dim=1)
    by_caption = torch.cat([online.t(), mined[[1, 2, 3]].t()], dim=1).logsumexp(dim=1)
    loss = (by_image + by_caption - 2 * online.diagonal()).mean() / 2
    return surface_non_finite(loss, scores, offline)


def offline_hinges(own: Tensor, offline: Tensor, margin: float, pair_mask: Tensor | None) -> Tensor:
    """Hinges (4, B) of offline scores (4, B) over the positive pairs' scores (B,)."""
    hinges = (margin + offline - own).clamp(min=0)
    if pair_mask is None:
        return hinges
    return torch.cat([hinges[:2], hinges[2:].masked_fill(~pair_mask, 0)])


def stacked_offline(
    scores: Tensor,
    offline_captions: Tensor,
    offline_images: Tensor,
    offline_pairs: Tensor,
    partner_pairs: Tensor,
    pair_mask: Tensor | None,
) -> Tensor:
    """The four as one (4, B), in this order; raises ItmError unless they and the mask fit the scores (B, B)."""
    check_scores(scores)
    names = ("offline_captions", "offline_images", "offline_pairs", "partner_pairs")
    rows = (offline_captions, offline_images, offline_pairs, partner_pairs)
    for name, row in zip(names, rows, strict=True):
        _check_vector(name, row, scores)
    if pair_mask is not None:
        _check_vector("pair_mask", pair_mask, scores, mask=True)
    return torch.stack(rows)


def _check_vector(name: str, vector: Tensor, scores: Tensor, *, mask: bool = False) -> None:
    fits = isinstance(vector, Tensor) and (vector.dtype == torch.bool if mask else vector.is_floating_point())
    if not fits:
        found = str(vector.dtype) if isinstance(vector, Tensor) else type(vector).__name__
        wanted = "torch.bool" if mask else "floating-point"
        raise ItmError(f"{name} is {found}; give a {wanted} tensor (B,), one value per pair")
    if vector.shape != scores.shape[:1]:
        raise ItmError(f"{name} has shape {tuple(vector.shape)}; the scores have {tuple(scores.shape)}")
    if vector.device != scores.device:
        raise ItmError(f"{name} is on {vector.device}; the scores are on {scores.device}")
