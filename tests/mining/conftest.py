"""A set of images and captions of medium size."""

from __future__ import annotations

import numpy as np
import pytest
from mining.mine_cases import unit


@pytest.fixture
def medium():
    """More candidates than a list's buffer holds, in many tiles; captions in random order."""
    rng = np.random.default_rng(0)
    images = unit(rng, 150, 8)
    owners = rng.integers(0, 150, 700)
    return images, unit(rng, 700, 8), owners
