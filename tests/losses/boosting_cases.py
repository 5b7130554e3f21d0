"""Batches for the tests of boosting_loss and contrastive_boosting_loss: official, random, and full of ties.

``fixtures/golden_boosting.npz`` holds arrays of the shared ``golden/dbl.npz``; the same checks run over the whole
archive where it is present.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FIXTURES
from hypothesis import strategies as st
from losses.positives import same_image

from lavis_itm_plugins.losses import boosting_loss

FIXTURE = FIXTURES / "golden_boosting.npz"
FORMS = ("relative", "absolute")
NEGATIVES = ("hardest", "all")
OFFICIAL = {"boostrel": "relative", "boostabs": "absolute"}
Golden = np.lib.npyio.NpzFile


def read_golden(request: pytest.FixtureRequest) -> Golden:
    """Body of the fixture ``golden``, with the parameters "fixture" and "shared"."""
    if request.param == "fixture":
        return np.load(FIXTURE)
    return np.load(request.getfixturevalue("shared") / "golden" / "dbl.npz")


def value_and_gradient(target, anchor, loss_function=boosting_loss, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = target.detach().clone().requires_grad_()
    loss = loss_function(leaf, anchor, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def pair(golden: Golden, source: str, size: int | str, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("scores", "anchor")
    target, anchor = (torch.from_numpy(golden[f"in/{source}/{size}/{name}"]).to(dtype) for name in names)
    return target, anchor


def random_pair(size: int, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, anchor = torch.randn(2, size, size, generator=generator, dtype=dtype) / 4
    return target, anchor


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target and anchor with many exact ties, in float64, and same-image cells."""
    size = draw(st.integers(0, 5))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=2 * size * size, max_size=2 * size * size))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    target, anchor = torch.tensor(eighths, dtype=torch.float64).reshape(2, size, size) / 8
    return target, anchor, same_image(ids)
