"""Pseudo labels made while training: codes over prototypes, and the loss of predicting them (CODER, reconstructed).

The scheme is that of SwAV (Caron et al., NeurIPS 2020, algorithm 1) with prototypes that follow their members, since
CODER's own (Wang et al., ECCV 2022, arXiv 2208.09843) was not at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.scores import check_number, float32_island

LEAST_MASS = 1e-3  # a prototype with fewer members than this stays where it is


@float32_island
@torch.no_grad()
def sinkhorn_codes(scores: Tensor, *, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignments of rows to prototypes, spread so that each prototype gets about as much as any other.

    Starts from exp(scores / temperature) and in turn scales columns and rows to equal sums (Sinkhorn and Knopp); the
    rows come last. Computed on logarithms, so scores of any size do not overflow.

    Args:
        scores: (n, P), in cosine units; half precision becomes float32.
        temperature: above 0.
        iterations: at least 1.

    Returns:
        (n, P) without gradient, rows that sum to 1.

    Raises:
        ItmError: wrong shape, number out of range.

    >>> sinkhorn_codes(torch.tensor([[0.9, 0.8], [0.9, 0.1]]), temperature=0.1)
    tensor([[0.1442, 0.8558],
            [0.9946, 0.0054]])
    """
    if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
        raise ItmError("scores is no floating-point torch tensor (n, P); give row against prototype")
    check_number("temperature", temperature, above=0)
    check_number("iterations", iterations, at_least=1)
    logs = scores / temperature
    for _ in range(iterations):
        if len(logs):
            logs = logs - logs.logsumexp(dim=0)
        logs = logs.log_softmax(dim=1)
    return logs.exp()


def hard_codes(codes: Tensor) -> Tensor:
    """All of a row's weight on its largest code.

    >>> hard_codes(torch.tensor([[0.2, 0.7, 0.1]]))
    tensor([[0., 1., 0.]])
    """
    return torch.zeros_like(codes).scatter_(1, codes.argmax(dim=1, keepdim=True), 1.0)


@float32_island
@torch.no_grad()
def moved_prototypes(prototypes: Tensor, vectors: Tensor, codes: Tensor, *, momentum: float = 0.99) -> Tensor:
    """Prototypes moved towards the mean of their members; one without members stays.

    C_k becomes the unit vector of momentum C_k + (1 - momentum) sum_i code_ik x_i / sum_i code_ik.

    Args:
        prototypes: (P, d), unit rows.
        vectors: (n, d), normalised.
        codes: (n, P), see ``sinkhorn_codes``.
        momentum: from 0 to 1.

    Returns:
        (P, d), a new tensor.

    Raises:
        ItmError: momentum out of range.

    >>> moved_prototypes(torch.eye(2), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), momentum=0.6)
    tensor([[0.8321, 0.5547],
            [0.0000, 1.0000]])
    """
    check_number("momentum", momentum, at_least=0, at_most=1)
    mass = codes.sum(dim=0)[:, None]
    means = codes.T @ vectors / mass.clamp(min=LEAST_MASS)
    moved = normalize(momentum * prototypes + (1 - momentum) * means, dim=1)
    return torch.where(mass > LEAST_MASS, moved, prototypes)


@float32_island
def label_prediction_loss(concepts: Tensor, codes: Tensor, classifier: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of pseudo labels predicted from concept vectors: -mean_i sum_k code_ik log softmax_k(...).

    Args:
        concepts: (n, d), normalised; gets a gradient, as the classifier does.
        codes: (n, P), rows that sum to 1; taken as constants.
        classifier: (P, d), one row for each prototype, normalised inside.
        temperature: above 0.

    Returns:
        A 0-d tensor; 0 for n = 0.

    Raises:
        ItmError: shapes that do not belong together, temperature not above 0.

    >>> label_prediction_loss(torch.eye(2), torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.3133)
    """
    check_number("temperature", temperature, above=0)
    if codes.shape != (len(concepts), len(classifier)):
        raise ItmError(
            f"codes has shape {tuple(codes.shape)}; {len(concepts)} rows and {len(classifier)} prototypes make "
            f"({len(concepts)}, {len(classifier)})"
        )
    logits = concepts @ normalize(classifier, dim=1).T / temperature
    losses = -(codes.detach() * logits.log_softmax(dim=1)).sum(dim=1)
    return losses.sum() / max(len(losses), 1)
