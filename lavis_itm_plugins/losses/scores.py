"""What every loss on a score matrix shares: precision, checks, valid negatives, and scores that are not finite.

``scores[i, j]`` = image i (row), caption j (column); the pairs of the batch lie on the diagonal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError, unknown_name

_P = ParamSpec("_P")
_R = TypeVar("_R")


def float32_island(loss: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: the loss sees its half-precision tensors as float32 and runs outside autocast; float64 stays float64.

    >>> double = float32_island(lambda scores: 2 * scores)
    >>> double(torch.ones(1, dtype=torch.bfloat16)).dtype, double(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """

    @functools.wraps(loss)
    def island(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return loss(*map(_at_least_float32, args), **{k: _at_least_float32(v) for k, v in kwargs.items()})

    return island


def _at_least_float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.is_floating_point() and value.element_size() < 4
    return value.float() if half else value


def check_scores(scores: Tensor, name: str = "scores") -> None:
    """Raise ItmError unless ``scores`` is a square floating-point tensor (B, B); B = 0 is allowed.

    >>> check_scores(torch.zeros(3, 4))
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: scores has shape (3, 4); give a square (B, B), row = image, column = caption
    """
    if not isinstance(scores, Tensor):
        raise ItmError(f"{name} is a {type(scores).__name__}; give a torch tensor (B, B)")
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ItmError(f"{name} has shape {tuple(scores.shape)}; give a square (B, B), row = image, column = caption")
    if not scores.is_floating_point():
        raise ItmError(f"{name} is {scores.dtype}; give a floating-point tensor")


def check_pair(target: Tensor, anchor: Tensor) -> None:
    """Raise ItmError unless both are scores of the same pairs, and the anchor's are finite.

    >>> check_pair(torch.zeros(2, 2), torch.zeros(3, 3))
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: anchor has shape (3, 3), target (2, 2); score the same pairs
    """
    check_scores(target, "target")
    check_scores(anchor, "anchor")
    if target.shape != anchor.shape:
        raise ItmError(f"anchor has shape {tuple(anchor.shape)}, target {tuple(target.shape)}; score the same pairs")
    if target.device != anchor.device:
        raise ItmError(f"anchor is on {anchor.device}; target is on {target.device}")
    check_finite(anchor, "anchor")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ItmError, with the nearest name, unless ``value`` is one of ``choices``.

    >>> check_choice("negatives", "hardst", ("hardest", "all", "soft"))
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: unknown negatives "hardst"; did you mean hardest?
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise unknown_name(name, str(value), known)


def check_number(
    name: str, value: object, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Raise ItmError unless ``value`` is a finite number inside the range.

    >>> check_number("margin", -1.0, at_least=0)
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: margin is -1.0; give a number of at least 0
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number > above and at_least <= number <= at_most:
            return
    limits = {"above": above, "of at least": at_least, "of at most": at_most}
    wanted = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))
    raise ItmError(f"{name} is {value!r}; give a {f'number {wanted}' if wanted else 'finite number'}")


def check_temperature(temperature: float | Tensor) -> None:
    """Raise ItmError unless ``temperature`` is a number above 0, or a floating-point tensor of one such number.

    >>> check_temperature(torch.tensor(0.0))
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: temperature is 0.0; give a number above 0
    """
    if isinstance(temperature, Tensor):
        if temperature.ndim or not temperature.is_floating_point():
            found = f"a {temperature.dtype} tensor of shape {tuple(temperature.shape)}"
            raise ItmError(f"temperature is {found}; give a number or a 0-d floating-point tensor")
        temperature = float(temperature.detach())
    check_number("temperature", temperature, above=0)


def valid_negatives(scores: Tensor, positives: Tensor | None) -> Tensor:
    """Bool (B, B), True where column j is a negative of row i: not on the diagonal, not where ``positives`` is True.

    >>> valid_negatives(torch.zeros(2, 2), None).tolist()
    [[False, True], [True, False]]
    >>> valid_negatives(torch.zeros(2, 2), torch.tensor([[False, True], [True, False]])).tolist()
    [[False, False], [False, False]]
    """
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if positives is None:
        return ~diagonal
    if not isinstance(positives, Tensor) or positives.dtype != torch.bool:
        found = positives.dtype if isinstance(positives, Tensor) else type(positives).__name__
        raise ItmError(f"positives is {found}; give a torch.bool tensor (B, B), True where image ids match")
    if positives.shape != scores.shape:
        raise ItmError(f"positives has shape {tuple(positives.shape)}; the scores have {tuple(scores.shape)}")
    if positives.device != scores.device:
        raise ItmError(f"positives is on {positives.device}; the scores are on {scores.device}")
    return ~(positives | diagonal)


def check_finite(values: Tensor, name: str) -> None:
    """Raise ItmError if an anchor or label is NaN or infinite: it comes from outside the step, so it is no overflow.

    >>> check_finite(torch.tensor([[0.5, torch.nan], [0.1, 0.2]]), "anchor")
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: 1 of 4 values of anchor are not finite, the first at (0, 1); see where they ...
    """
    bad = (~values.detach().isfinite()).nonzero()
    if len(bad):
        count = f"{len(bad)} of {values.numel()} values of {name} are not finite"
        raise ItmError(f"{count}, the first at {tuple(bad[0].tolist())}; see where they come from")


def surface_non_finite(loss: Tensor, *scores: Tensor) -> Tensor:
    """The loss, made NaN where it is finite although some score is not: a mask, a maximum or a hinge had dropped it.

    >>> surface_non_finite(torch.tensor(1.0), torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
    tensor(nan)
    """
    for part in scores:
        lowest, highest = part.detach().aminmax()
        zero_or_nan = 0 * lowest + 0 * highest
        loss = loss + torch.where(loss.isfinite(), zero_or_nan, 0)
    return loss
