"""Moving copies of networks."""

from lavis_itm_plugins.momentum.copy import MomentumCopy

__all__ = ["MomentumCopy"]
