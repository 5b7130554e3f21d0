"""A slowly moving copy of a network: DBL's momentum anchor, CODER's key tower."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lavis_itm_plugins.errors import ItmError


class MomentumCopy(nn.Module):
    """An exponential moving average of a module's parameters; its buffers are copied as they are.

    The copy starts equal to the source, is always in evaluation mode and never gets a gradient. Half-precision
    parameters are averaged in float32, where a step of 1 - momentum is not rounded away. (He et al., MoCo, CVPR 2020,
    section 3.2.)

    >>> source = nn.Linear(1, 1, bias=False)
    >>> copy = MomentumCopy(source, momentum=0.75)
    >>> _ = nn.init.zeros_(copy.module.weight), nn.init.ones_(source.weight)
    >>> copy.update()
    >>> copy.module.weight
    Parameter containing:
    tensor([[0.2500]])
    """

    def __init__(self, module: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        self.momentum = _checked(momentum)
        self.module = deepcopy(module).requires_grad_(False).eval()
        # in a tuple, so that the source does not become a part of its own copy
        self._source = (module,)
        for number, parameter in enumerate(self.module.parameters()):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                self.register_buffer(f"average_{number}", parameter.detach().float())

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """Move the copy: `momentum` x copy + (1 - `momentum`) x source; call it once after each optimiser step.

        Raises ItmError for a momentum outside [0, 1].
        """
        momentum = self.momentum if momentum is None else _checked(momentum)
        source = self._source[0]
        averages = self._averages()
        current = [s.detach().to(a.dtype) for s, a in zip(source.parameters(), averages, strict=True)]
        get_ema_multi_avg_fn(momentum)(averages, current, 0)
        for average, parameter in zip(averages, self.module.parameters(), strict=True):
            if average is not parameter:
                parameter.copy_(average)
        for own, buffer in zip(self.module.buffers(), source.buffers(), strict=True):
            own.copy_(buffer)

    def forward(self, *args: object, **kwargs: object) -> object:
        """The copy's output, without a gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> MomentumCopy:
        """Nothing: the copy stays in evaluation mode, whatever its owner does."""
        return self

    def _averages(self) -> list[Tensor]:
        """What is averaged: each parameter, or its float32 form."""
        kept = dict(self.named_buffers(recurse=False))
        return [kept.get(f"average_{i}", parameter) for i, parameter in enumerate(self.module.parameters())]


class OwnCopy(nn.Module):
    """A `MomentumCopy` that its source has already, and moves by itself: nothing is copied, `update` does nothing."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        # in a tuple: its weights are in the state of its source
        self._twin = (twin,)

    @property
    def module(self) -> nn.Module:
        """The momentum network."""
        return self._twin[0]

    def update(self, momentum: float | None = None) -> None:
        """Nothing: the source moves it."""


def momentum_copy(module: nn.Module, momentum: float) -> MomentumCopy | OwnCopy:
    """The momentum network that a module has by itself, from its `momentum_twin`, else a new `MomentumCopy`."""
    twin = module.momentum_twin() if hasattr(module, "momentum_twin") else None
    return MomentumCopy(module, momentum) if twin is None else OwnCopy(twin)


def _checked(momentum: float) -> float:
    if not 0 <= momentum <= 1:
        raise ItmError(
            f"momentum: {momentum!r} is out of range; give a value from 0 (follow at once) to 1 (stand still)"
        )
    return float(momentum)
