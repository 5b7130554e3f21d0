"""infonce_loss against a double loop, torch's cross-entropy and official numbers; what it must refuse or show."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.positives import same_image

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import infonce_loss

FIXTURE = FIXTURES / "golden_triplet.npz"


def check_boostpro(archive, prefix: str) -> None:
    """DBL's "boostpro" is the two directions of InfoNCE on target minus anchor, ADDED, at temperature 1 / s."""
    keys = [key for key in archive.files if key.startswith(f"{prefix}out/boostpro/") and key.endswith("loss_f64")]
    assert len(keys) >= 12
    for key in keys:
        source, size, tag = key.removeprefix(prefix).split("/")[2:5]
        target, anchor = (
            torch.from_numpy(archive[f"{prefix}in/{source}/{size}/{name}"]).double() for name in ("scores", "anchor")
        )
        target.requires_grad_()
        loss = 2 * infonce_loss(target - anchor, temperature=1 / float(tag[1:]))
        loss.backward()
        np.testing.assert_allclose(loss.item(), archive[key], rtol=1e-10, atol=1e-13, err_msg=key)
        gradient = archive[key.replace("loss_", "grad_")]
        np.testing.assert_allclose(target.grad.numpy(), gradient, rtol=1e-10, atol=1e-13, err_msg=key)


def test_golden_boostpro() -> None:
    check_boostpro(np.load(FIXTURE), "dbl/")


def test_golden_boostpro_whole_archive(shared: Path) -> None:
    check_boostpro(np.load(shared / "golden" / "dbl.npz"), "")


def naive(scores: np.ndarray, temperature: float, positives: np.ndarray) -> float:
    total = 0.0
    for matrix, match in ((scores, positives), (scores.T, positives.T)):
        for q in range(len(matrix)):
            kept = [matrix[q][n] for n in range(len(matrix)) if n == q or not match[q][n]]
            total += np.logaddexp.reduce(np.array(kept) / temperature) - matrix[q][q] / temperature
    return total / (2 * len(scores))


@settings(deadline=None, max_examples=100)
@given(data=st.data(), size=st.integers(1, 6), temperature=st.sampled_from([0.01, 0.05, 1.0]))
def test_equals_the_double_loop(data, size, temperature) -> None:
    numbers = st.floats(-1, 1, width=32)
    scores = torch.tensor(data.draw(st.lists(numbers, min_size=size * size, max_size=size * size)), dtype=torch.float64)
    scores = scores.reshape(size, size)
    positives = same_image(data.draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size)))
    before = scores.clone()
    loss = infonce_loss(scores, temperature=temperature, positives=positives).item()
    assert loss == pytest.approx(naive(scores.numpy(), temperature, positives.numpy()), rel=1e-10, abs=1e-12)
    assert torch.equal(scores, before)
    assert infonce_loss(scores.T, temperature=temperature, positives=positives.T).item() == pytest.approx(
        loss, abs=1e-12
    )


def test_equals_cross_entropy_without_same_image_cells() -> None:
    scores, own = torch.randn(8, 8, dtype=torch.float64), torch.arange(8)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(scores / 0.07, own) + cross_entropy(scores.T / 0.07, own)) / 2
    torch.testing.assert_close(infonce_loss(scores, temperature=0.07), expected, rtol=1e-12, atol=0)


def test_gradcheck_of_scores_and_temperature() -> None:
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    positives = same_image([0, 1, 0, 2])
    assert torch.autograd.gradcheck(
        lambda s, t: infonce_loss(s, temperature=t, positives=positives), (scores, temperature)
    )


def test_tensor_temperature_equals_the_number_and_learns() -> None:
    scores = torch.randn(4, 4)
    temperature = torch.nn.Parameter(torch.tensor(0.07))
    loss = infonce_loss(scores, temperature=temperature)
    loss.backward()
    torch.testing.assert_close(loss.detach(), infonce_loss(scores, temperature=0.07))
    assert temperature.grad is not None and temperature.grad != 0


def test_same_image_cell_has_no_say() -> None:
    scores, positives = torch.randn(3, 3), same_image([0, 1, 0])
    changed = scores.clone()
    changed[0, 2] += 5
    changed[2, 0] -= 5
    assert torch.equal(infonce_loss(scores, positives=positives), infonce_loss(changed, positives=positives))
    leaf = scores.clone().requires_grad_()
    infonce_loss(leaf, positives=positives).backward()
    assert leaf.grad[0, 2] == 0 and leaf.grad[2, 0] == 0 and leaf.grad[0, 1] != 0


def test_diagonal_is_a_positive_whatever_the_mask_says() -> None:
    scores = torch.randn(3, 3)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(infonce_loss(scores, positives=nothing), infonce_loss(scores))
    assert not nothing.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", list(itertools.product(range(3), range(3))))
def test_non_finite_score_is_never_hidden(value: float, cell: tuple[int, int]) -> None:
    scores = torch.eye(3) * 0.9
    scores[cell] = value
    for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):
        assert not infonce_loss(scores, positives=positives).isfinite()


@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_no_negative_gives_zero_with_a_graph(ids: list[int]) -> None:
    scores = torch.randn(len(ids), len(ids), requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        loss = infonce_loss(scores, positives=same_image(ids))
        loss.backward()
    assert loss.shape == () and loss == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores = torch.randn(6, 6).to(dtype)
    temperature = torch.tensor(0.05, dtype=dtype)
    expected = infonce_loss(scores.float(), temperature=temperature.float())
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = infonce_loss(scores, temperature=temperature)
            assert infonce_loss(scores.double(), temperature=temperature).dtype == torch.float64
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 3), {}, r"scores has shape \(2, 3\)"),
        (torch.zeros(2, 2), {"temperature": 0}, "temperature is 0; give a number above 0"),
        (torch.zeros(2, 2), {"temperature": torch.tensor(-1.0)}, "temperature is -1.0; give a number above 0"),
        (torch.zeros(2, 2), {"temperature": torch.ones(2)}, r"temperature is a torch.float32 tensor of shape \(2,\)"),
        (torch.zeros(2, 2), {"temperature": torch.tensor(1)}, "temperature is a torch.int64 tensor"),
        (torch.zeros(2, 2), {"temperature": float("inf")}, "temperature is inf"),
        (torch.zeros(2, 2), {"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
    ],
)
def test_bad_input_is_named(scores, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        infonce_loss(scores, **options)
