"""What goes wrong in training, noticed early: losses that are not finite, networks that collapse."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError

log = logging.getLogger(__name__)
MOST_SKIPPED_IN_A_ROW = 20
COLLAPSED_COSINE = 0.995
SAMPLE = 512


class FiniteWatch:
    """Decides what to do with a step whose loss or gradient norm is not finite: stop with advice, or skip it."""

    def __init__(self, action: str = "stop") -> None:
        self.action, self.skipped, self.in_a_row = action, 0, 0

    def allows(self, value: Tensor, what: str, position: str) -> bool:
        """Whether the step may be taken; raises ItmError when the run should stop."""
        if bool(torch.isfinite(value.detach()).all()):
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        said = f"{what} is {float(value.detach()):.4g} at {position}"
        advice = "lower run.init_lr, set run.itm.clip_grad, or look for NaN with `lavis-itm data verify`"
        if self.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise ItmError(f"{said}, after {self.in_a_row} skipped steps in a row; {advice}")
        if self.action == "stop":
            raise ItmError(f"{said}; {advice}; run.itm.on_nonfinite=skip leaves such steps out")
        log.warning("%s: step skipped (%d so far)", said, self.skipped)
        return False

    def scaler_skipped(self, position: str) -> None:
        """Count a step that the gradient scaler left out: some are normal at the start, a row of them is not."""
        self.in_a_row += 1
        if self.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise ItmError(
                f"the gradient is not finite at {position}, {self.in_a_row} times in a row; lower run.init_lr, "
                "set run.itm.amp_dtype=bfloat16, or look for NaN with `lavis-itm data verify`"
            )

    def step_taken(self) -> None:
        """A sound step ends a row of skipped ones."""
        self.in_a_row = 0


def check_collapse(images: Encoded, action: str) -> None:
    """Warn, or raise ItmError, when image vectors hardly differ: the known failure of hardest negatives."""
    if images.pooled is None or len(images) < 2:
        return
    sample = torch.nn.functional.normalize(images.pooled[:SAMPLE].float(), dim=1)
    cosines = sample @ sample.t()
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (len(sample) * (len(sample) - 1)))
    if mean < COLLAPSED_COSINE:
        return
    said = (
        f"the network has collapsed: images have a mean cosine of {mean:.4f} with each other. Try "
        "base_loss.warmup_epochs=1, base_loss.negatives=all, base_loss.name=infonce or a lower run.init_lr"
    )
    if action == "stop":
        raise ItmError(said)
    log.warning("%s", said)


def position(epoch: Any, step: int) -> str:
    """Where an epoch stands, in words; `step` counts from 1."""
    return f"epoch {epoch.number + 1}, step {step}"
