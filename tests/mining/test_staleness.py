"""How far lists have moved, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lavis_itm_plugins.mining import HardNegatives
from lavis_itm_plugins.mining.staleness import staleness


def test_staleness_of_lists():
    def lists(captions, images):
        empty = np.zeros((0, 0))
        return HardNegatives(np.array(captions), np.array(images), empty, empty, empty)

    old, new = lists([[1, 2, 3], [4, 5, -1]], [[0, 1]]), lists([[3, 9, 1], [7, 4, 8]], [[1, 0]])
    told = staleness(old, new)
    # of image 0, 1 is now at rank 2, 2 is gone (3), 3 at rank 0; of image 1, 4 at rank 1, 5 is gone
    assert told["overlap_captions"] == pytest.approx(3 / 5) and told["rank_captions"] == pytest.approx(9 / 5)
    assert told["overlap_images"] == 1 and told["rank_images"] == 0.5
    assert staleness(new, new)["overlap_captions"] == 1
