"""The losses over mined negatives against double loops, and as parts of the losses they belong to."""

from __future__ import annotations

import math

import pytest
import torch

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import infonce_loss, offline_hinge_loss, offline_infonce_loss, quintuplet_loss
from lavis_itm_plugins.losses.quintuplet import quintuplet_statistics

NAMES = ("offline_captions", "offline_images", "offline_pairs", "partner_pairs")


def random_inputs(size: int, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=generator, dtype=dtype) / 4
    return scores, {name: torch.randn(size, generator=generator, dtype=dtype) / 4 for name in NAMES}


@pytest.fixture
def masks() -> dict[str, torch.Tensor]:
    ids = torch.tensor([0, 1, 0, 2, 3])
    return {"positives": ids[:, None] == ids, "pair_mask": torch.tensor([True, False, True, True, False])}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_hinges_are_the_offline_part_of_the_quintuplet_loss(masks, reduction):
    scores, offline = random_inputs(5)
    without = {"alpha": math.inf, "beta": 0.0, "reduction": reduction}
    expected = quintuplet_loss(scores, **offline, **masks, **without, offline_margin=0.1)
    found = offline_hinge_loss(scores, **offline, pair_mask=masks["pair_mask"], offline_margin=0.1, reduction=reduction)
    assert found > 0
    torch.testing.assert_close(found, expected)


def naive_infonce(scores, offline, temperature, positives, pair_mask):
    total, size = 0.0, len(scores)
    for i in range(size):
        pairs = [offline["offline_pairs"][i], offline["partner_pairs"][i]] if pair_mask[i] else []
        for matrix, match, name in ((scores, positives, "offline_captions"), (scores.T, positives.T, "offline_images")):
            negatives = [matrix[i, j] for j in range(size) if j != i and not match[i, j]]
            terms = [*negatives, offline[name][i], *pairs, matrix[i, i]]
            total += math.log(sum(math.exp(float(term) / temperature) for term in terms)) - matrix[i, i] / temperature
    return total / size / 2


def test_infonce_with_mined_negatives_equals_the_double_loop(masks):
    scores, offline = random_inputs(5)
    found = offline_infonce_loss(scores, **offline, **masks, temperature=0.2)
    assert found.item() == pytest.approx(float(naive_infonce(scores, offline, 0.2, *masks.values())), rel=1e-10)
    leaves = [value.clone().requires_grad_() for value in (scores, *offline.values())]

    def loss(first, *rest):
        return offline_infonce_loss(first, **dict(zip(NAMES, rest, strict=True)), **masks, temperature=0.2)

    assert torch.autograd.gradcheck(loss, leaves)


def test_mined_scores_that_are_low_leave_infonce_alone(masks):
    scores, offline = random_inputs(5)
    low = {name: torch.full_like(value, -99) for name, value in offline.items()}
    expected = infonce_loss(scores, positives=masks["positives"])
    torch.testing.assert_close(offline_infonce_loss(scores, **low, **masks), expected)


def test_infinite_alpha_gives_every_weight_beta(masks):
    scores, offline = random_inputs(5)
    leaves = {name: value.clone().requires_grad_() for name, value in offline.items()}
    found = quintuplet_loss(scores, **leaves, **masks, alpha=math.inf, beta=2.0)
    near = quintuplet_loss(scores, **offline, **masks, alpha=1e12, beta=2.0)
    torch.testing.assert_close(found.detach(), near)
    found.backward()
    # no way through the weights: a hinge's slope is 0 or 1
    assert all(set(leaf.grad.tolist()) <= {0.0, 1.0} for leaf in leaves.values())
    with pytest.raises(ItmError, match="alpha is -inf; give a number above 0"):
        quintuplet_loss(scores, **offline, alpha=-math.inf)


@pytest.mark.parametrize("loss", [offline_hinge_loss, offline_infonce_loss])
def test_nothing_bad_is_hidden(loss):
    for size in (0, 1):
        scores, offline = random_inputs(size)
        assert loss(scores, **offline).isfinite()
    scores, offline = random_inputs(3)
    for name in NAMES:
        bad = {**offline, name: torch.tensor([0.0, torch.nan, 0.0], dtype=torch.float64)}
        for mask in (None, torch.zeros(3, dtype=torch.bool)):
            assert not loss(scores, **bad, pair_mask=mask).isfinite()
    with pytest.raises(ItmError, match=r"partner_pairs has shape \(2,\); the scores have \(3, 3\)"):
        loss(scores, **{**offline, "partner_pairs": torch.zeros(2)})
    half = {name: value.to(torch.bfloat16) for name, value in offline.items()}
    assert loss(scores.to(torch.bfloat16), **half).dtype == torch.float32


def test_statistics_of_a_batch_worked_out_by_hand():
    scores = torch.tensor([[0.5, 0.45], [0.0, 0.6]])
    offline = {"offline_captions": [0.7, 0.1], "offline_images": [0.2, 0.2], "offline_pairs": [0.6, 0.0]}
    offline = {name: torch.tensor(value) for name, value in (offline | {"partner_pairs": [0.0, 0.9]}).items()}
    told = quintuplet_statistics(scores, **offline, pair_mask=torch.tensor([True, False]))
    # n: captions 0.45, 0; images 0, 0.45; o - n: 0.25, 0.1, 0.2, -0.25
    assert told["offline_over_online"].item() == pytest.approx(0.075)
    assert told["weight"].item() == pytest.approx(1.5 - 0.25)
    assert told["weight_negative"] == 0 and told["offline_above"] == 0.25
    assert told["active_online"].item() == pytest.approx(0.5)
    assert told["active_offline"] == 0.25 and told["active_pairs"] == 0.25
    lonely = quintuplet_statistics(scores[:1, :1], **{name: value[:1] for name, value in offline.items()})
    assert all(value.isfinite() for value in lonely.values())
