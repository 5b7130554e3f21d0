"""Lists much shorter than the set are right, stay within the memory given, and few candidates are looked at again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mining.mine_cases import direct

from lavis_itm_plugins.mining import CandidateFilters, mine_hard_negatives, passes
from lavis_itm_plugins.mining.running import RunningTopK


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("order", ["random", "rising"])
def test_lists_much_shorter_than_the_set(medium, order, threads, monkeypatch) -> None:
    """Rising: for some queries every candidate beats those before it, so that their lists are cut again and again."""
    images, captions, owners = medium
    if order == "rising":
        captions = captions[np.argsort(captions @ images[0])]
        images = images[np.argsort(images @ captions[-1])]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    mined = mine_hard_negatives(
        *(images, captions, owners), captions_per_image=9, images_per_caption=5, memory_budget_mb=0.1
    )
    expected = direct(images @ captions.T, owners.tolist(), 9, 5)
    # tiles round in another way than the whole product: neighbours in a list may change places
    for found, wanted in zip((mined.captions, mined.images), expected, strict=True):
        assert np.mean(np.sort(found) == np.sort(wanted)) > 0.999


def test_tiles_stay_within_the_budget(medium, monkeypatch) -> None:
    images, captions, owners = medium
    seen = []
    stock = passes.TilePass._scored

    def scored(*given):
        tile = stock(*given)
        seen.append(tile.numel() * passes.BYTES_PER_PAIR)
        return tile

    monkeypatch.setattr(passes.TilePass, "_scored", scored)
    mine_hard_negatives(images, captions, owners, memory_budget_mb=0.1)
    assert len(seen) > 10 and max(seen) <= 0.1 * 2**20


@pytest.mark.parametrize(
    "filters", [CandidateFilters(), CandidateFilters(relative_margin=0.05), CandidateFilters(skip=2)]
)
def test_few_candidates_are_looked_at_again(medium, filters, monkeypatch) -> None:
    """Also with limits: every list has a threshold before its first candidates are sorted."""
    images, captions, owners = medium
    stock, looked_at = RunningTopK.add, []

    def add(self, part, counts, *rest):
        looked_at.append(int(counts.sum()))
        return stock(self, part, counts, *rest)

    monkeypatch.setattr(RunningTopK, "add", add)
    lengths = {"captions_per_image": 4, "images_per_caption": 2}
    mine_hard_negatives(images, captions, owners, **lengths, filters=filters, memory_budget_mb=0.1)
    assert sum(looked_at) < 0.2 * 2 * len(images) * len(captions)


def test_running_lists_take_the_memory_they_say() -> None:
    best = RunningTopK(1000, k=60)
    assert best._keys.nbytes == 1000 * 8 * (2 * 60 + 32)
