"""How far mined lists have moved, once a model that went on training mines them anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.mining.negatives import HardNegatives


def staleness(old: HardNegatives, new: HardNegatives, sampled: int = 2000) -> dict[str, float]:
    """How far new lists have moved from the old ones, over at most `sampled` images and captions.

    `overlap_*`: share of the old candidates that are still listed; `rank_*`: their mean rank now, the length of the
    list where they are not in it.
    """
    told = {}
    for kind in ("captions", "images"):
        before, now = getattr(old, kind), getattr(new, kind)
        rows = np.unique(np.linspace(0, len(now) - 1, num=min(sampled, len(now))).astype(np.int64))
        ranks = [_ranks_now(np.asarray(before[row]), np.asarray(now[row])) for row in rows]
        joined = np.concatenate(ranks)
        told[f"overlap_{kind}"] = float((joined < now.shape[1]).mean())
        told[f"rank_{kind}"] = float(joined.mean())
    return told


def _ranks_now(before: NDArray[np.int32], now: NDArray[np.int32]) -> NDArray[np.int64]:
    """Position of each of the old candidates in the new list; its length for those that left it."""
    before = before[before >= 0]
    order = np.argsort(now)
    place = np.minimum(np.searchsorted(now, before, sorter=order), len(now) - 1)
    found = order[place]
    return np.where(now[found] == before, found, len(now))
