"""A generated data set so small that it is made in a moment, and seeds for scenes drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from lavis_itm_plugins.data.scenes import SceneConfig

SMALL = SceneConfig(train=30, val=6, test=12, seed=3, size=32)
seeds = st.integers(0, 2**32)
