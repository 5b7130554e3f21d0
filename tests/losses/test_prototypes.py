"""Pseudo labels of CODER against the reference numbers, loops, and edge cases."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from golden import FIXTURES, check_extract
from hypothesis import given
from hypothesis import strategies as st
from losses.coder_golden import Golden, open_golden
from torch.nn.functional import normalize

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.prototypes import (
    hard_codes,
    label_prediction_loss,
    moved_prototypes,
    sinkhorn_codes,
)

FIXTURE = FIXTURES / "golden_coder.npz"
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return open_golden(request, FIXTURE)


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    check_extract(FIXTURE, shared / "golden" / "coder.npz")


def test_golden_codes(golden: Golden) -> None:
    scores = golden["proto_x"] @ golden["proto"].T
    for iterations, name in ((3, "code"), (200, "code_iters200")):
        torch.testing.assert_close(sinkhorn_codes(scores, iterations=iterations), golden[name], **EXACT)
    assert torch.equal(hard_codes(golden["code"]), golden["code_hard"])
    step = normalize(torch.cat([golden["step_xv"], golden["step_xt"]]), dim=1) @ golden["proto"].T
    torch.testing.assert_close(sinkhorn_codes(step), golden["step_code"], **EXACT)


def test_golden_prototypes(golden: Golden) -> None:
    given = golden["proto"], golden["proto_x"], golden["code"]
    torch.testing.assert_close(moved_prototypes(*given), golden["proto_after_ema"], **EXACT)
    dead = golden["code"].clone()
    dead[:, 2] = 0
    moved = moved_prototypes(golden["proto"], golden["proto_x"], dead)
    torch.testing.assert_close(moved, golden["proto_after_ema_dead2"], **EXACT)
    assert torch.equal(moved[2], golden["proto"][2])


def test_golden_label_loss(golden: Golden) -> None:
    concepts, classifier = (golden[name].requires_grad_() for name in ("query_c_v", "label_wcls"))
    codes = golden["code"]
    loss = label_prediction_loss(concepts, codes[:6], classifier)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["label_loss_v"], **EXACT)
    torch.testing.assert_close(concepts.grad, golden["label_loss_v_grad_c"], **EXACT)
    torch.testing.assert_close(classifier.grad, golden["label_loss_v_grad_wcls"], **EXACT)
    other = label_prediction_loss(golden["query_c_t"], codes[6:], golden["label_wcls"])
    torch.testing.assert_close(other, golden["label_loss_t"], **EXACT)
    hard = label_prediction_loss(golden["query_c_v"], hard_codes(codes)[:6], golden["label_wcls"])
    torch.testing.assert_close(hard, golden["label_loss_v_hard"], **EXACT)


def naive_sinkhorn(scores: torch.Tensor, temperature: float, iterations: int) -> list[list[float]]:
    """SwAV's loop, in plain numbers."""
    rows, columns = scores.shape
    q = [[math.exp(float(value) / temperature) for value in row] for row in scores]
    for _ in range(iterations):
        sums = [sum(q[i][k] for i in range(rows)) for k in range(columns)]
        q = [[q[i][k] / sums[k] / columns for k in range(columns)] for i in range(rows)]
        q = [[value / sum(row) / rows for value in row] for row in q]
    return [[value * rows for value in row] for row in q]


@given(
    rows=st.integers(1, 6), columns=st.integers(1, 5), iterations=st.integers(1, 4),
    temperature=st.floats(0.05, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_sinkhorn_equals_the_loops(rows, columns, iterations, temperature, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.rand(rows, columns, dtype=torch.float64, generator=generator) - 1
    codes = sinkhorn_codes(scores, temperature=temperature, iterations=iterations)
    expected = torch.tensor(naive_sinkhorn(scores, temperature, iterations), dtype=torch.float64)
    torch.testing.assert_close(codes, expected, rtol=1e-9, atol=1e-12)


DRAWN = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
SCORES = [torch.full((3, 4), 50.0), DRAWN[:1, :7], DRAWN, 50 * torch.eye(6)]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_sum_to_one_at_any_size_and_scale(scores, sign) -> None:
    codes = sinkhorn_codes(sign * scores)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(len(scores)), rtol=1e-5, atol=1e-5)
    assert codes.isfinite().all() and not codes.requires_grad


def test_a_dominating_prototype_is_shared_out() -> None:
    """Every row likes the first prototype best; balance gives each prototype its part."""
    scores = torch.rand(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 2
    assert (scores.argmax(dim=1) == 0).all()
    codes = sinkhorn_codes(scores, iterations=50)
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 10.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_half_precision_is_computed_in_float32() -> None:
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn_codes(scores)
    assert codes.dtype == torch.float32
    assert torch.equal(codes, sinkhorn_codes(scores.float()))


def test_only_concepts_and_classifier_get_a_gradient() -> None:
    concepts, codes, classifier = (torch.rand(3, 3).requires_grad_() for _ in range(3))
    label_prediction_loss(concepts, codes, classifier).backward()
    assert codes.grad is None and concepts.grad is not None and classifier.grad is not None
    prototypes = torch.eye(3).requires_grad_()
    assert not moved_prototypes(prototypes, concepts, codes).requires_grad


def test_the_classifier_is_normalised() -> None:
    concepts, codes = normalize(torch.randn(4, 3), dim=1), torch.eye(4)
    classifier = torch.randn(4, 3)
    scaled = classifier * torch.tensor([[1.0], [2.0], [5.0], [0.1]])
    torch.testing.assert_close(
        label_prediction_loss(concepts, codes, classifier), label_prediction_loss(concepts, codes, scaled)
    )


def test_without_rows() -> None:
    assert sinkhorn_codes(torch.zeros(0, 3)).shape == (0, 3)
    assert label_prediction_loss(torch.zeros(0, 2), torch.zeros(0, 3), torch.eye(3)[:, :2]) == 0
    prototypes = torch.eye(3)
    assert torch.equal(moved_prototypes(prototypes, torch.zeros(0, 3), torch.zeros(0, 3)), prototypes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn_codes(torch.zeros(3)), "scores is no floating-point torch tensor"),
        (lambda: sinkhorn_codes(torch.zeros(3, 2), temperature=0), "temperature is 0"),
        (lambda: sinkhorn_codes(torch.zeros(3, 2), iterations=0), "iterations is 0"),
        (lambda: moved_prototypes(*[torch.eye(2)] * 3, momentum=1.5), "momentum is 1.5"),
        (lambda: label_prediction_loss(torch.eye(2), torch.eye(3), torch.eye(2)), r"codes has shape \(3, 3\)"),
        (lambda: label_prediction_loss(*[torch.eye(2)] * 3, temperature=-1), "temperature is -1"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(ItmError, match=message):
        call()
