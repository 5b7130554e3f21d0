"""Moving copies of networks, and the keys they made."""

from lavis_itm_plugins.momentum.copy import MomentumCopy, OwnCopy, momentum_copy
from lavis_itm_plugins.momentum.dictionary import Dictionary

__all__ = ["Dictionary", "MomentumCopy", "OwnCopy", "momentum_copy"]
