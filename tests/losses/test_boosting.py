"""boosting_loss and contrastive_boosting_loss against official numbers, a double loop, and their properties.

``fixtures/golden_boosting.npz`` holds arrays of the shared ``golden/dbl.npz``; the same checks run over the whole
archive where it is present.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss, infonce_loss, triplet_loss
from lavis_itm_plugins.losses.boosting import attainable_margin, boosting_statistics

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_boosting.npz"
FORMS = ("relative", "absolute")
NEGATIVES = ("hardest", "all")
OFFICIAL = {"boostrel": "relative", "boostabs": "absolute"}
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 5e-5, "atol": 5e-5}}
PRECISION = {torch.float64: "f64", torch.float32: "f32"}

Golden = np.lib.npyio.NpzFile


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    if request.param == "fixture":
        return np.load(FIXTURE)
    return np.load(request.getfixturevalue("shared") / "golden" / "dbl.npz")


def value_and_gradient(target, anchor, loss_function=boosting_loss, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = target.detach().clone().requires_grad_()
    loss = loss_function(leaf, anchor, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def pair(golden: Golden, source: str, size: int | str, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("scores", "anchor")
    target, anchor = (torch.from_numpy(golden[f"in/{source}/{size}/{name}"]).to(dtype) for name in names)
    return target, anchor


def same_image(ids: np.ndarray | list[int]) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.long)
    return ids[:, None] == ids


def random_pair(size: int, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, anchor = torch.randn(2, size, size, generator=generator, dtype=dtype) / 4
    return target, anchor


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    whole, part = np.load(shared / "golden" / "dbl.npz"), np.load(FIXTURE)
    assert FIXTURE.stat().st_size < 300_000
    for key in part.files:
        np.testing.assert_array_equal(part[key], whole[key])


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden(golden: Golden, name: str, dtype: torch.dtype) -> None:
    keys = [key for key in golden.files if key.startswith(f"out/{name}/") and key.endswith(f"loss_{PRECISION[dtype]}")]
    assert len(keys) >= 40
    for key in keys:
        source, size, tag = key.split("/")[2:5]
        numbers = {part[0]: float(part[1:]) for part in tag.split("_")}
        options = {"margin": numbers["m"], "beta": numbers["b"], "gamma": numbers.get("g", 0.5)}
        target, anchor = pair(golden, source, size, dtype)
        loss, gradient = value_and_gradient(target, anchor, form=OFFICIAL[name], **options)
        torch.testing.assert_close(loss, torch.from_numpy(golden[key]), **TOLERANCE[dtype], msg=key)
        # "equal" and "quant" are full of ties: rounding decides, unless the margin is a multiple of 1/8 as the scores.
        exact = source == "quant" and numbers["m"] in (0, 0.25) and name == "boostrel"
        if key.replace("loss_", "grad_") in golden.files and (source in ("unif", "real") or exact):
            expected = torch.from_numpy(golden[key.replace("loss_", "grad_")])
            torch.testing.assert_close(gradient, expected, **TOLERANCE[dtype], msg=key)


@pytest.mark.parametrize("dtype", PRECISION)
def test_golden_contrastive(golden: Golden, dtype: torch.dtype) -> None:
    start, end = "out/boostpro/", f"loss_{PRECISION[dtype]}"
    keys = [key for key in golden.files if key.startswith(start) and key.endswith(end)]
    assert len(keys) == 18
    for key in keys:
        source, size, tag = key.split("/")[2:5]
        target, anchor = pair(golden, source, size, dtype)
        options = {"temperature": 1 / float(tag[1:])}
        loss, gradient = value_and_gradient(target, anchor, contrastive_boosting_loss, **options)
        torch.testing.assert_close(loss, torch.from_numpy(golden[key]), **TOLERANCE[dtype], msg=key)
        if key.replace("loss_", "grad_") in golden.files:
            expected = torch.from_numpy(golden[key.replace("loss_", "grad_")])
            torch.testing.assert_close(gradient, expected, **TOLERANCE[dtype], msg=key)


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_same_image_cells_are_no_negatives(golden: Golden, name: str, size: int) -> None:
    target, anchor = pair(golden, "real", size)
    positives = same_image(golden[f"in/ids/{size}/dup"])
    loss, gradient = value_and_gradient(target, anchor, form=OFFICIAL[name], positives=positives)
    expected, expected_gradient = (torch.from_numpy(golden[f"ext/fnmask/{name}/{size}/{x}"]) for x in ("loss", "grad"))
    torch.testing.assert_close(loss, expected, **TOLERANCE[torch.float64])
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("alpha", ["1", "0.5"])
@pytest.mark.parametrize("scenario", ["MSS", "OAS"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_full_objective(golden: Golden, name: str, scenario: str, alpha: str) -> None:
    def objective(target: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return triplet_loss(target) + float(alpha) * boosting_loss(target, anchor, form=OFFICIAL[name])

    loss, gradient = value_and_gradient(*pair(golden, "real", 8), objective)
    key = f"total/{scenario}/{name}/a{alpha}"
    expected, expected_gradient = (torch.from_numpy(golden[f"{key}/{x}"]) for x in ("loss", "grad_target"))
    torch.testing.assert_close(loss, expected.reshape(()), **TOLERANCE[torch.float32], check_dtype=False)
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE[torch.float32], check_dtype=False)


@pytest.mark.parametrize("alpha", ["1", "0.5"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_peers(golden: Golden, name: str, alpha: str) -> None:
    """Three branches: each adds the mean boost over the earlier ones, which get nothing of it."""
    branches = [pair(golden, "real", 8)[1], pair(golden, "real", 8)[0], pair(golden, "equal", 8)[0]]
    for number, own in enumerate(branches):

        def objective(target: torch.Tensor, earlier: list[torch.Tensor]) -> torch.Tensor:
            boosts = [boosting_loss(target, anchor, form=OFFICIAL[name]) for anchor in earlier]
            return triplet_loss(target) + float(alpha) * sum(boosts) / max(len(boosts), 1)

        loss, gradient = value_and_gradient(own, branches[:number], objective)
        key = f"total/OSS/{name}/a{alpha}/branch{number}"
        expected, expected_gradient = (torch.from_numpy(golden[f"{key}/{x}"]) for x in ("loss", "grad_own"))
        torch.testing.assert_close(loss, expected.reshape(()), **TOLERANCE[torch.float64])
        torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE[torch.float64])


@pytest.mark.parametrize(("schedule", "official"), [("linear", "linear"), ("tanh", "sigmoid")])
@pytest.mark.parametrize("tag", ["m0.1_e1", "m0.2_e2"])
def test_golden_margin_schedules(golden: Golden, schedule: str, official: str, tag: str) -> None:
    """ "sup" asks an anchor's score or gap to rise towards its ceiling e, "inf" to fall towards the floor -e."""
    reference = torch.from_numpy(golden["softmargin/ref"])
    margin, end = (float(part[1:]) for part in tag.split("_"))
    for side, room in (("sup", end - reference), ("inf", end + reference)):
        expected = torch.from_numpy(golden[f"softmargin/{official}/{side}/{tag}"])
        torch.testing.assert_close(attainable_margin(margin, room, schedule), expected, rtol=1e-12, atol=1e-12)


CELLS = {"off": (1, 2), "diag": (3, 3)}
VALUES = {"nan": torch.nan, "inf": torch.inf, "pinf": torch.inf, "ninf": -torch.inf}


@pytest.mark.parametrize("case", ["nan_target_off", "nan_target_diag", "inf_target_off"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_non_finite_target(golden: Golden, name: str, case: str) -> None:
    target, anchor = pair(golden, "real", 8, torch.float32)
    value, _, place = case.split("_")
    target[CELLS[place]] = VALUES[value]
    loss, _ = value_and_gradient(target, anchor, form=OFFICIAL[name])
    torch.testing.assert_close(loss, torch.from_numpy(golden[f"edge/{case}/{name}/loss"]), equal_nan=True)
    assert not contrastive_boosting_loss(target, anchor).isfinite()


@pytest.mark.parametrize("case", ["nan_anchor_off", "nan_anchor_diag", "ninf_anchor_off", "pinf_anchor_off"])
def test_non_finite_anchor_raises(golden: Golden, case: str) -> None:
    target, anchor = pair(golden, "real", 8, torch.float32)
    value, _, place = case.split("_")
    anchor[CELLS[place]] = VALUES[value]
    message = rf"1 of 64 values of anchor are not finite, the first at \({CELLS[place][0]}, {CELLS[place][1]}\)"
    losses = (contrastive_boosting_loss, *(lambda t, a, form=form: boosting_loss(t, a, form=form) for form in FORMS))
    for loss in losses:
        with pytest.raises(ItmError, match=message):
            loss(target, anchor)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_half_precision(golden: Golden, name: str, size: int, precision: str, dtype: torch.dtype) -> None:
    """The official code in that precision is as far off as that precision; ours is its float32 path, exactly."""
    target, anchor = pair(golden, "real", size, dtype)
    whole = value_and_gradient(target.float(), anchor.float(), form=OFFICIAL[name])
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(target, anchor, form=OFFICIAL[name])
            double, _ = value_and_gradient(target.double(), anchor.double(), form=OFFICIAL[name])
        assert loss.dtype == torch.float32 and torch.equal(loss, whole[0])
        assert torch.equal(gradient, whole[1].to(dtype))
        assert double.dtype == torch.float64
    expected = float(golden[f"amp/{precision}/{name}/{size}/loss"])
    assert loss.item() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    target, anchor = random_pair(6, dtype=torch.float32)
    target, anchor = target.to(dtype), anchor.to(dtype)
    expected = value_and_gradient(target.float(), anchor.float(), contrastive_boosting_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = value_and_gradient(target, anchor, contrastive_boosting_loss)
    assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1].to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    target, anchor = (part.to(dtype) for part in random_pair(6, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = boosting_statistics(target, anchor)
    expected = boosting_statistics(target.float(), anchor.float())
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in expected)


def scheduled(margin: float, room: float, schedule: str) -> float:
    if schedule == "none" or margin == 0:
        return margin
    return min(margin, room) if schedule == "linear" else margin * math.tanh(room / margin)


def naive(target, anchor, *, form, margin, beta, gamma, negatives, positives, reduction, margin_schedule="none"):
    """One query at a time, from the definition; an autograd-free double loop."""
    size, wide = len(target), beta * margin
    combine = {"hardest": max, "all": sum}[negatives]
    rises = []
    for q in range(size):
        room = scheduled(gamma * wide, 1 - anchor[q][q], margin_schedule)
        rises.append(max(room - (target - anchor)[q][q], 0.0))
    costs = []
    for t, a, match in ((target, anchor, positives), (target.T, anchor.T, positives.T)):
        for_each = []
        for q in range(size):
            hinges = []
            for n in range(size):
                if n == q or match[q][n]:
                    continue
                if form == "relative":
                    wanted = scheduled(wide, 2 - (a[q][q] - a[q][n]), margin_schedule)
                    hinges.append(max(wanted + (a[q][q] - a[q][n]) - (t[q][q] - t[q][n]), 0.0))
                else:
                    wanted = scheduled((1 - gamma) * wide, 1 + a[q][n], margin_schedule)
                    hinges.append(max(wanted + t[q][n] - a[q][n], 0.0))
            if hinges:
                for_each.append(combine(hinges))
        costs.append(for_each)
    if reduction == "sum":
        return sum(map(sum, costs)) + (2 * sum(rises) if form == "absolute" else 0.0)
    mean = sum(sum(cost) / len(cost) for cost in costs if cost) / 2
    return mean + (sum(rises) / size if form == "absolute" and size else 0.0)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target and anchor with many exact ties, in float64, and same-image cells."""
    size = draw(st.integers(0, 5))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=2 * size * size, max_size=2 * size * size))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    target, anchor = torch.tensor(eighths, dtype=torch.float64).reshape(2, size, size) / 8
    return target, anchor, same_image(ids)


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    form=st.sampled_from(FORMS),
    margin=st.sampled_from([0.0, 0.2, 0.25]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    gamma=st.sampled_from([0.0, 0.3, 1.0]),
    negatives=st.sampled_from(NEGATIVES),
    reduction=st.sampled_from(["sum", "mean"]),
    schedule=st.sampled_from(["none", "linear", "tanh"]),
)
def test_equals_the_double_loop(batch, form, margin, beta, gamma, negatives, reduction, schedule) -> None:
    target, anchor, positives = batch
    options = {"form": form, "margin": margin, "beta": beta, "gamma": gamma, "margin_schedule": schedule}
    options |= {"negatives": negatives, "reduction": reduction}
    before = target.clone(), anchor.clone(), positives.clone()
    loss = boosting_loss(target, anchor, positives=positives, **options)
    expected = naive(target.numpy(), anchor.numpy(), positives=positives.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert all(map(torch.equal, before, (target, anchor, positives)))
    order = torch.randperm(len(target))
    for move in (lambda m: m[order][:, order], lambda m: m.T):
        moved = boosting_loss(move(target), move(anchor), positives=move(positives), **options)
        assert moved.item() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(batch=batches(), temperature=st.sampled_from([0.05, 0.1, 1.0]))
def test_contrastive_is_twice_infonce_of_the_gain(batch, temperature) -> None:
    target, anchor, positives = batch
    options = {"temperature": temperature, "positives": positives}
    loss = contrastive_boosting_loss(target, anchor, **options)
    assert loss.item() == pytest.approx(2 * infonce_loss(target - anchor, **options).item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_mines_the_negative_that_rose_most(form: str) -> None:
    anchor = torch.tensor([[0.9, 0.8, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])
    target = anchor.clone()
    target[0, 2] = 0.1  # rose by 0.1, while caption 1 stays the most similar wrong one
    _, gradient = value_and_gradient(target, anchor, form=form)
    assert gradient[0, 2] == 2 and gradient[0, 1] < 2


@settings(deadline=None, max_examples=50)
@given(batch=batches(), gamma=st.floats(0, 1), negatives=st.sampled_from(NEGATIVES))
def test_relative_is_at_most_absolute(batch, gamma, negatives) -> None:
    target, anchor, _ = batch
    if negatives == "all" and len(target) > 2:
        return  # the positive term is counted once per query, the gap once per negative
    relative = boosting_loss(target, anchor, negatives=negatives)
    assert relative <= boosting_loss(target, anchor, form="absolute", gamma=gamma, negatives=negatives) + 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_no_gain_costs_two_margins_per_pair(form: str, gamma: float) -> None:
    scores, _ = random_pair(7)
    loss = boosting_loss(scores, scores.clone(), form=form, margin=0.2, beta=1.5, gamma=gamma)
    assert loss.item() == pytest.approx(2 * 7 * 0.3, rel=1e-12)
    mean = boosting_loss(scores, scores.clone(), form=form, margin=0.2, beta=1.5, gamma=gamma, reduction="mean")
    assert mean.item() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_constant_offset_and_scale(form: str) -> None:
    target, anchor = random_pair(6)
    loss = boosting_loss(target, anchor, form=form)
    moved = boosting_loss(target + 0.07, anchor, form=form)
    assert (abs(loss - moved) < 1e-12) == (form == "relative")
    scaled = boosting_loss(3 * target, 3 * anchor, form=form, margin=0.6)
    assert scaled.item() == pytest.approx(3 * loss.item(), rel=1e-12)


def test_relative_is_the_triplet_loss_of_the_gain() -> None:
    target, anchor = random_pair(6)
    for negatives, reduction in itertools.product(NEGATIVES, ("sum", "mean")):
        options = {"negatives": negatives, "reduction": reduction, "positives": same_image([0, 1, 0, 2, 3, 4])}
        expected = triplet_loss(target - anchor, margin=0.1, **options)
        assert torch.equal(boosting_loss(target, anchor, margin=0.2, beta=0.5, **options), expected)
    assert boosting_loss(target, torch.full_like(target, 0.3)).item() == pytest.approx(triplet_loss(target).item())


@pytest.mark.parametrize("loss_function", [boosting_loss, contrastive_boosting_loss])
def test_anchor_gets_no_gradient(loss_function) -> None:
    target, anchor = random_pair(5)
    anchor.requires_grad_()
    _, gradient = value_and_gradient(target, anchor, loss_function)
    assert anchor.grad is None and gradient.any()
    assert not loss_function(target, anchor).requires_grad


@pytest.mark.parametrize("schedule", ["none", "linear", "tanh"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, negatives: str, schedule: str) -> None:
    target, anchor = random_pair(5)
    options = {"form": form, "negatives": negatives, "margin_schedule": schedule}
    options |= {"positives": same_image([0, 1, 0, 2, 3]), "reduction": "mean" if schedule == "none" else "sum"}
    assert torch.autograd.gradcheck(lambda t: boosting_loss(t, anchor, **options), (target.requires_grad_(),))


def test_contrastive_gradcheck() -> None:
    target, anchor = random_pair(5)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    positives = same_image([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(
        lambda t, tau: contrastive_boosting_loss(t, anchor, temperature=tau, positives=positives),
        (target.requires_grad_(), temperature),
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_without_negatives_only_the_positive_term_is_left(negatives: str, reduction: str, ids: list[int]) -> None:
    target, anchor = random_pair(len(ids))
    options = {"negatives": negatives, "reduction": reduction, "positives": same_image(ids)}
    with torch.autograd.set_detect_anomaly(True):
        relative, gradient = value_and_gradient(target, anchor, **options)
        absolute, absolute_gradient = value_and_gradient(target, anchor, form="absolute", **options)
        contrastive, _ = value_and_gradient(target, anchor, contrastive_boosting_loss, positives=same_image(ids))
    rise = (0.1 - (target - anchor).diagonal()).clamp(min=0)
    assert relative.shape == () and relative == 0 and not gradient.any()
    assert contrastive.item() == pytest.approx(0, abs=1e-12)
    expected = 2 * rise.sum().item() if reduction == "sum" else rise.sum().item() / max(len(ids), 1)
    assert absolute.item() == pytest.approx(expected, rel=1e-12)
    weight = 2.0 if reduction == "sum" else 1 / max(len(ids), 1)
    torch.testing.assert_close(absolute_gradient, -weight * torch.diag(rise > 0).to(target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", list(itertools.product(range(3), range(3))))
def test_non_finite_target_is_never_hidden(value: float, cell: tuple[int, int]) -> None:
    target, anchor = torch.eye(3) * 0.9, torch.zeros(3, 3)
    target[cell] = value
    for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):
        for form, negatives, reduction in itertools.product(FORMS, NEGATIVES, ("sum", "mean")):
            options = {"form": form, "negatives": negatives, "positives": positives, "reduction": reduction}
            assert not boosting_loss(target, anchor, **options).isfinite(), options
        assert not contrastive_boosting_loss(target, anchor, positives=positives).isfinite()


@pytest.mark.parametrize("form", FORMS)
def test_a_margin_schedule_asks_for_no_more_than_can_be_had(form: str) -> None:
    perfect = 2 * torch.eye(3, dtype=torch.float64) - 1
    assert boosting_loss(perfect, perfect, form=form).item() == pytest.approx(2 * 3 * 0.2)
    for schedule in ("linear", "tanh"):
        assert boosting_loss(perfect, perfect, form=form, margin_schedule=schedule) == 0


@settings(deadline=None, max_examples=50)
@given(batch=batches(), form=st.sampled_from(FORMS), gamma=st.sampled_from([0.0, 0.3, 1.0]))
def test_statistics_are_those_of_a_loop(batch, form, gamma) -> None:
    target, anchor, positives = batch
    size, gain = len(target), target - anchor
    if not size:
        return
    told = boosting_statistics(target, anchor, form=form, margin=0.25, gamma=gamma, positives=positives)
    mined, active = [], []
    for matrix in (gain, gain.T):
        for q in range(size):
            others = [matrix[q, n].item() for n in range(size) if n != q and not positives[q, n]]
            mined += [max(others)] if others else []
            offset = -gain[q, q].item() + 0.25 if form == "relative" else (1 - gamma) * 0.25
            active += [max(others) + offset > 0] if others else []
    if form == "absolute":
        active += [gamma * 0.25 - gain[q, q].item() > 0 for q in range(size)]
    expected = {
        "positive_gain": gain.diagonal().mean().item(),
        "negative_gain": sum(mined) / max(len(mined), 1),
        "active_hinges": sum(active) / max(len(active), 1),
        "masked_negatives": positives.sum().item() - size,
    }
    assert {name: value.item() for name, value in told.items()} == pytest.approx(expected, abs=1e-12)


def test_layout_of_the_input_does_not_matter() -> None:
    target, anchor = torch.randn(4, 8)[:, ::2], torch.randn(4, 4).T
    for form in FORMS:
        expected = boosting_loss(target.contiguous(), anchor.contiguous(), form=form)
        assert torch.equal(boosting_loss(target, anchor, form=form), expected)
        flat = torch.tensor(0.5).expand(4, 4)
        assert boosting_loss(flat, flat, form=form).item() == pytest.approx(2 * 4 * 0.2)


SQUARE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("target", "anchor", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"target has shape \(2, 3\); give a square"),
        (SQUARE, torch.zeros(2, 3), r"anchor has shape \(2, 3\); give a square"),
        (SQUARE, torch.zeros(3, 3), r"anchor has shape \(3, 3\), target \(2, 2\)"),
        (SQUARE, torch.zeros(2, 2, device="meta"), "anchor is on meta; target is on cpu"),
        (torch.zeros(2, 2, dtype=torch.long), SQUARE, "target is torch.int64"),
        (SQUARE, np.zeros((2, 2)), "anchor is a ndarray"),
    ],
)
def test_bad_scores_are_named(target, anchor, message) -> None:
    for loss in (boosting_loss, contrastive_boosting_loss):
        with pytest.raises(ItmError, match=message):
            loss(target, anchor)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (boosting_loss, {"form": "relativ"}, 'unknown form "relativ"; did you mean relative'),
        (boosting_loss, {"negatives": "soft"}, 'unknown negatives "soft"'),
        (boosting_loss, {"margin_schedule": "smooth"}, 'unknown margin_schedule "smooth"'),
        (boosting_loss, {"reduction": "average"}, 'unknown reduction "average"'),
        (boosting_loss, {"margin": -0.1}, "margin is -0.1; give a number of at least 0"),
        (boosting_loss, {"beta": -1.0}, "beta is -1.0; give a number of at least 0"),
        (boosting_loss, {"gamma": -0.1}, "gamma is -0.1; give a number of at least 0 and of at most 1"),
        (boosting_loss, {"gamma": 1.1}, "gamma is 1.1"),
        (boosting_loss, {"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        (contrastive_boosting_loss, {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (contrastive_boosting_loss, {"positives": torch.ones(2, dtype=torch.bool)}, r"positives has shape \(2,\)"),
    ],
)
def test_bad_options_are_named(loss, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        loss(SQUARE, SQUARE, **options)
