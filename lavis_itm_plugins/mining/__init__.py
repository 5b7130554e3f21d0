"""Hard negatives of a whole training set: exact tiled top-k, and candidate lists on disk. No LAVIS."""

from lavis_itm_plugins.mining.building import build_candidates
from lavis_itm_plugins.mining.mine import MiningJob, MiningSettings, mine_hard_negatives
from lavis_itm_plugins.mining.negatives import CandidateFilters, HardNegatives
from lavis_itm_plugins.mining.scores import DotProducts, Scorer
from lavis_itm_plugins.mining.store import Candidates, data_identity, open_candidates

__all__ = [
    "CandidateFilters",
    "Candidates",
    "DotProducts",
    "HardNegatives",
    "MiningJob",
    "MiningSettings",
    "Scorer",
    "build_candidates",
    "data_identity",
    "mine_hard_negatives",
    "open_candidates",
]
