"""What changes nothing: order, offset and scale of similarities, invalid slots, and the number of ranks."""

from __future__ import annotations

import pytest
import torch
from losses.diversity_cases import EXACT, KINDS, WAYS, batch

from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights
from lavis_itm_plugins.losses.diversity import negative_spreads


@pytest.mark.parametrize("kind", ["std", "none"])
def test_weights_follow_neither_offset_nor_scale_of_similarities(kind: str) -> None:
    query, _, negatives, valid = batch()
    similarities = query @ negatives.T
    expected = diversity_weights(similarities, valid, kind=kind)
    torch.testing.assert_close(diversity_weights(similarities + 0.3, valid, kind=kind), expected, **EXACT)
    torch.testing.assert_close(diversity_weights(0.2 * similarities, valid, kind=kind), expected, **EXACT)


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_order_of_batch_and_dictionary_does_not_matter(form: str, kind: str) -> None:
    query, key, negatives, valid = batch()
    rows, slots = torch.tensor([2, 0, 3, 1]), torch.tensor([6, 0, 5, 1, 4, 2, 3])
    moved = query[rows], key[rows], negatives[slots], valid[rows][:, slots]
    loss = diversity_contrastive_loss(query, key, negatives, valid, form=form, kind=kind)
    torch.testing.assert_close(diversity_contrastive_loss(*moved, form=form, kind=kind), loss, **EXACT)


@pytest.mark.parametrize("kind", ["std", "iso"])
def test_spread_of_all_ranks(kind: str) -> None:
    """Two ranks with the common spread give what one rank with both batches gives."""
    query, key, negatives, valid = batch()
    counts, _, spreads = negative_spreads(query @ negatives.T, valid)
    spread = spreads.sum() / (counts >= 2).sum()
    halves = [
        diversity_contrastive_loss(query[rows], key[rows], negatives, valid[rows], kind=kind, spread=spread)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    expected = diversity_contrastive_loss(query, key, negatives, valid, kind=kind)
    torch.testing.assert_close(sum(halves) / 2, expected, **EXACT)
    number = diversity_contrastive_loss(query, key, negatives, valid, kind=kind, spread=spread.item())
    torch.testing.assert_close(number, expected, **EXACT)
    own = diversity_contrastive_loss(query[:2], key[:2], negatives, valid[:2], kind=kind)
    assert not torch.isclose(own, halves[0])
    assert diversity_contrastive_loss(query, key, negatives, valid, kind=kind, spread=0.0).isfinite()
    assert diversity_contrastive_loss(query, key, negatives, valid, kind=kind, spread=torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_do_not_look_at_invalid_slots(kind: str) -> None:
    query, _, negatives, valid = batch()
    similarities = query @ negatives.T
    expected = diversity_weights(similarities, valid, kind=kind)
    assert torch.equal(diversity_weights(similarities.masked_fill(~valid, torch.nan), valid, kind=kind), expected)
