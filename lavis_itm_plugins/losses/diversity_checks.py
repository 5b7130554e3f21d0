"""What the losses of ``diversity.py`` refuse, each with one sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.scores import check_choice, check_number, check_temperature

KINDS = ("std", "none", "iso", "entropy", "adnce")
FORMS = ("nce", "lse")


def check_weighting(kind: str, beta: float, temperature: float | Tensor) -> None:
    """Raise ItmError for an unknown kind of weights, or a number out of range."""
    check_choice("kind", kind, KINDS)
    check_number("beta", beta)
    check_temperature(temperature)


def check_form(form: str, slope: float, offset: float, spread: float | Tensor | None) -> None:
    """Raise ItmError for an unknown form of the loss, or a number out of range."""
    check_choice("form", form, FORMS)
    check_number("slope", slope, above=0)
    check_number("offset", offset)
    if isinstance(spread, Tensor):  # its value is of the step: if it is not finite, so is the loss
        if spread.numel() != 1:
            raise ItmError(f"spread has shape {tuple(spread.shape)}; give one number")
    elif spread is not None:
        check_number("spread", spread, at_least=0)


def check_valid(similarities: Tensor, valid: Tensor) -> None:
    """Raise ItmError unless similarities are (B, M) and ``valid`` is a bool mask of their shape, on their device."""
    if not isinstance(similarities, Tensor) or similarities.ndim != 2 or not similarities.is_floating_point():
        raise ItmError(
            "similarities is no floating-point torch tensor (B, M); give query (row) against negative (column)"
        )
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        found = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise ItmError(f"valid is {found}; give a torch.bool tensor (B, M), True where j is a negative of query i")
    if valid.shape != similarities.shape:
        raise ItmError(f"valid has shape {tuple(valid.shape)}; the similarities have {tuple(similarities.shape)}")
    if valid.device != similarities.device:
        raise ItmError(f"valid is on {valid.device}; the similarities are on {similarities.device}")


def check_embeddings(query: Tensor, key: Tensor, negatives: Tensor) -> None:
    """Raise ItmError unless query and key are (B, D) and negatives (M, D), of one type on one device."""
    for name, value in (("query", query), ("key", key), ("negatives", negatives)):
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
            raise ItmError(f"{name} is no floating-point torch tensor with two axes, the second the embedding")
        if (value.dtype, value.device) != (query.dtype, query.device):
            raise ItmError(f"{name} is {value.dtype} on {value.device}; the query is {query.dtype} on {query.device}")
    if key.shape != query.shape:
        raise ItmError(f"key has shape {tuple(key.shape)}; the query has {tuple(query.shape)}")
    if negatives.shape[1] != query.shape[1]:
        raise ItmError(f"negatives has {negatives.shape[1]} columns; the query has {query.shape[1]}")
