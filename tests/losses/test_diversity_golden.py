"""Weights, losses, gradients and statistics of negatives are the reference numbers of CODER.

``fixtures/golden_diversity.npz`` is an extract of the shared golden archive ``coder.npz``; the same checks run over
the whole archive where it is present.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import FIXTURES, check_extract
from losses.coder_golden import Golden, open_golden
from losses.diversity_cases import EXACT, WAYS, value_and_gradient

from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights
from lavis_itm_plugins.losses.diversity import negative_spreads

FIXTURE = FIXTURES / "golden_diversity.npz"


def inputs(golden: Golden) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries that want a gradient, keys, negatives and which of these are valid."""
    return golden["q"].requires_grad_(), golden["k"], golden["neg"], golden["mask"]


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return open_golden(request, FIXTURE, "dcl_")


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    check_extract(FIXTURE, shared / "golden" / "coder.npz")


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_golden_weights(golden: Golden, form: str, kind: str) -> None:
    query, _, negatives, valid = inputs(golden)
    temperature = 0.05 if form == "nce" else 1 / 90
    similarities = query @ negatives.T
    weights = diversity_weights(similarities, valid, kind=kind, temperature=temperature)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, golden[f"w_{form}_{kind}"], **EXACT)
    single = diversity_weights(similarities.float(), valid, kind=kind, temperature=temperature)
    torch.testing.assert_close(single, weights.float(), rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_golden_loss(golden: Golden, form: str, kind: str) -> None:
    query, key, negatives, valid = inputs(golden)
    options = {"form": form, "kind": kind}
    loss, gradient = value_and_gradient(query, key, negatives, valid, **options)
    torch.testing.assert_close(loss, golden[f"{form}_{kind}"], **EXACT)
    torch.testing.assert_close(gradient, golden[f"{form}_{kind}_grad_q"], **EXACT)
    spread = golden["sigma_bar"]
    for i, expected in enumerate(golden[f"{form}_{kind}_per"]):
        row = slice(i, i + 1)
        one = diversity_contrastive_loss(query[row], key[row], negatives, valid[row], spread=spread, **options)
        torch.testing.assert_close(one, expected, **EXACT)
    single = (part.detach().float() for part in (query, key, negatives))
    assert diversity_contrastive_loss(*single, valid, **options).item() == pytest.approx(loss.item(), rel=5e-5)


def test_golden_statistics(golden: Golden) -> None:
    query, _, negatives, valid = inputs(golden)
    counts, means, spreads = negative_spreads(query @ negatives.T, valid)
    assert torch.equal(counts[:, 0], valid.sum(dim=1))
    torch.testing.assert_close(means[:, 0], golden["mu"], **EXACT)
    torch.testing.assert_close(spreads[:, 0], golden["sigma"], **EXACT)
    torch.testing.assert_close(spreads.mean(), golden["sigma_bar"], **EXACT)


def test_golden_variants(golden: Golden) -> None:
    query, key, negatives, valid = inputs(golden)
    everything, one = golden["valid"].expand_as(valid), torch.zeros_like(valid)
    one[:, 1] = True
    for name, mask, options in (
        ("nce_empty", torch.zeros_like(valid), {}),
        ("nce_one", one, {}),
        ("nce_std_beta2", valid, {"beta": 2.0}),
        ("nce_std_nomask", everything, {}),
    ):
        loss = diversity_contrastive_loss(query, key, negatives, mask, **options)
        torch.testing.assert_close(loss, golden[name], **EXACT, msg=name)


def test_golden_stability(golden: Golden) -> None:
    """The archive keeps the number, log(14) / 6, and no inputs: these are ours.

    Of six queries at temperature 1e-3, one equals its key and all of 13 negatives; the others are orthogonal to them.
    """
    query, same = torch.eye(8, dtype=torch.float64)[:6], torch.eye(8, dtype=torch.float64)[:1].expand(13, 8)
    loss = diversity_contrastive_loss(query, query, same, torch.ones(6, 13, dtype=torch.bool), temperature=1e-3)
    torch.testing.assert_close(loss, golden["nce_std_tau1e-3"], **EXACT)
