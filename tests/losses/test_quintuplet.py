"""quintuplet_loss against official numbers, a double loop, and everything that must not slip through.

``fixtures/golden_quintuplet.npz`` holds arrays of the shared ``golden/aoq.npz``; the same checks run over that archive
where it is present. Its ``vsrn_summed`` is out: the official loss without hardest negatives has a slip (aoq.md, B3).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import quintuplet_loss, triplet_loss

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_quintuplet.npz"
OFFICIAL = (
    *("vsrn_easy", "vsrn_hard", "vsrn_hyper", "vsrn_negweight", "vsrn_f32", "vsrn_b1", "vsrn_dupimage"),
    *("bfan_equal", "bfan_prob"),
)
# ours -> the archive's
OFFLINE = {
    "offline_captions": "i2thnoff",
    "offline_images": "t2ihnoff",
    "offline_pairs": "i2thnoff2",
    "partner_pairs": "t2ihnoff2",
}
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 5e-5, "atol": 5e-5}}

Golden = np.lib.npyio.NpzFile
Inputs = dict[str, torch.Tensor]


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    if request.param == "fixture":
        return np.load(FIXTURE)
    return np.load(request.getfixturevalue("shared") / "golden" / "aoq.npz")


def case_of(golden: Golden, case: str) -> tuple[Inputs, dict[str, float], torch.Tensor, Inputs]:
    """Inputs, options, loss, and the gradient of every input."""
    mid = {key: torch.from_numpy(golden[f"{case}__mid_{key}"]) for key in ("scores", *OFFLINE.values())}
    grad = {key: torch.from_numpy(golden[f"{case}__midgrad_{key}"]) for key in ("scores", "pos", *OFFLINE.values())}
    if not case.startswith("bfan"):  # there the positive scores are a view of the score matrix
        grad["scores"] = grad["scores"] + torch.diag(grad["pos"])
    names = ("online_margin", "offline_margin", "alpha", "beta")
    options = dict(zip(names, golden[f"{case}__params"].tolist(), strict=False))
    ours = {"scores": "scores", **OFFLINE}
    inputs, gradients = ({name: arrays[key] for name, key in ours.items()} for arrays in (mid, grad))
    return inputs, options, torch.from_numpy(golden[f"{case}__loss"]), gradients


def value_and_gradients(inputs: Inputs, **options: object) -> tuple[torch.Tensor, Inputs]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    loss = quintuplet_loss(**leaves, **options)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def same_image(ids: list[int]) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.long)
    return ids[:, None] == ids


def random_inputs(size: int, seed: int = 0, dtype=torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=generator, dtype=dtype) / 4
    return {"scores": scores} | {name: torch.randn(size, generator=generator, dtype=dtype) / 4 for name in OFFLINE}


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    whole, part = np.load(shared / "golden" / "aoq.npz"), np.load(FIXTURE)
    for key in part.files:
        np.testing.assert_array_equal(part[key], whole[key])


@pytest.mark.parametrize("case", OFFICIAL)
def test_golden(golden: Golden, case: str) -> None:
    inputs, options, expected, expected_gradients = case_of(golden, case)
    tolerance = TOLERANCE[inputs["scores"].dtype]
    loss, gradients = value_and_gradients(inputs, **options)
    torch.testing.assert_close(loss, expected, **tolerance)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], **tolerance, msg=name)
    mean = quintuplet_loss(**inputs, **options, reduction="mean")
    torch.testing.assert_close(mean, expected / len(inputs["scores"]), **tolerance)


def test_golden_detached_weights_are_another_loss(golden: Golden) -> None:
    inputs, options, expected, expected_gradients = case_of(golden, "contrast_detached")
    for detach in (True, False):
        loss, gradients = value_and_gradients(inputs, **options, detach_weights=detach)
        torch.testing.assert_close(loss, expected, **TOLERANCE[torch.float64])
        equal = [torch.allclose(gradients[n], expected_gradients[n], rtol=1e-10, atol=1e-12) for n in gradients]
        assert equal == ([True] * 5 if detach else [False, False, False, True, True])


def test_golden_two_captions_of_one_image(golden: Golden) -> None:
    inputs, options, expected, _ = case_of(golden, "vsrn_dupimage")
    positives = same_image([0, 0, 2, 3, 4, 5])
    loss, gradients = value_and_gradients(inputs, **options, positives=positives)
    assert loss != expected
    assert not gradients["scores"][positives & ~torch.eye(6, dtype=torch.bool)].any()


def naive(inputs, *, online_margin, offline_margin, alpha, beta, positives, pair_mask, weight_min, reduction):
    """One pair at a time, from the definition; an autograd-free double loop."""
    scores, size, total = inputs["scores"], len(inputs["scores"]), 0.0
    directions = ((scores, positives, "offline_captions"), (scores.T, positives.T, "offline_images"))
    for i in range(size):
        for matrix, match, name in directions:
            negatives = [matrix[i][j] for j in range(size) if j != i and not match[i][j]]
            if negatives:
                weight = beta - (inputs[name][i] - max(negatives)) / alpha
                weight = weight if weight_min is None else max(weight, weight_min)
                total += weight * max(online_margin + max(negatives) - scores[i][i], 0.0)
            total += max(offline_margin + inputs[name][i] - scores[i][i], 0.0)
        for name in ("offline_pairs", "partner_pairs"):
            total += max(offline_margin + inputs[name][i] - scores[i][i], 0.0) if pair_mask[i] else 0.0
    return total / size if reduction == "mean" and size else total


@st.composite
def batches(draw: st.DrawFn) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
    """Scores with many exact ties, in float64, same-image cells, and a pair mask."""
    size = draw(st.integers(0, 5))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=size * (size + 4), max_size=size * (size + 4)))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    keep = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    table = torch.tensor(eighths, dtype=torch.float64).reshape(size + 4, size) / 8
    inputs = {"scores": table[4:]} | dict(zip(OFFLINE, table[:4], strict=True))
    return inputs, same_image(ids), torch.tensor(keep, dtype=torch.bool)


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    margins=st.sampled_from([(0.2, 0.0), (0.0, 0.125), (0.25, 0.1)]),
    weights=st.sampled_from([(0.3, 1.5, None), (0.1, 0.5, None), (0.1, 0.5, 0.0), (0.5, 0.0, -1.0)]),
    detach=st.booleans(),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_equals_the_double_loop(batch, margins, weights, detach, reduction) -> None:
    inputs, positives, pair_mask = batch
    options = dict(zip(("online_margin", "offline_margin"), margins, strict=True))
    options |= dict(zip(("alpha", "beta", "weight_min"), weights, strict=True)) | {"reduction": reduction}
    before = {name: value.clone() for name, value in inputs.items()}
    masks = {"positives": positives, "pair_mask": pair_mask}
    loss, gradients = value_and_gradients(inputs, **masks, **options, detach_weights=detach)
    plain = {name: value.numpy() for name, value in inputs.items()}
    expected = naive(plain, positives=positives.numpy(), pair_mask=pair_mask.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert all(torch.equal(before[name], inputs[name]) for name in inputs)
    # Only differences of scores enter.
    assert sum(gradient.sum().item() for gradient in gradients.values()) == pytest.approx(0, abs=1e-9)
    moved = quintuplet_loss(**{name: value + 0.25 for name, value in inputs.items()}, **masks, **options)
    assert moved.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_of_equal_hardest_negatives_one_gets_the_gradient() -> None:
    """As the official max: halves would move two items by half."""
    scores = torch.full((4, 4), 0.5, dtype=torch.float64)
    inputs = {"scores": scores} | {name: torch.full((4,), -1.0, dtype=torch.float64) for name in OFFLINE}
    _, gradients = value_and_gradients(inputs, alpha=1e12, beta=1.0)
    pulled = gradients["scores"].round()
    # no fraction anywhere: four queries in each of two directions
    torch.testing.assert_close(gradients["scores"], pulled, rtol=0, atol=1e-9)
    assert pulled.diagonal().tolist() == [-2] * 4 and pulled.clamp(min=0).sum() == 8


def test_permuting_the_batch_permutes_the_gradients() -> None:
    inputs, order = random_inputs(6), torch.randperm(6)
    loss, gradients = value_and_gradients(inputs)
    moved = {name: value[order][:, order] if value.ndim == 2 else value[order] for name, value in inputs.items()}
    moved_loss, moved_gradients = value_and_gradients(moved)
    assert moved_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(moved_gradients["scores"], gradients["scores"][order][:, order])
    torch.testing.assert_close(moved_gradients["offline_captions"], gradients["offline_captions"][order])


def test_transposed_with_the_offline_directions_swapped_is_the_same() -> None:
    inputs = random_inputs(6)
    captions, images = inputs["offline_captions"], inputs["offline_images"]
    other = inputs | {"scores": inputs["scores"].T, "offline_captions": images, "offline_images": captions}
    torch.testing.assert_close(quintuplet_loss(**other), quintuplet_loss(**inputs))
    assert quintuplet_loss(**(other | {"scores": inputs["scores"]})) != quintuplet_loss(**inputs)


def test_without_weights_and_offline_terms_it_is_the_triplet_loss() -> None:
    inputs = random_inputs(8)
    inputs |= {name: torch.full((8,), -9.0, dtype=torch.float64) for name in OFFLINE}
    loss = quintuplet_loss(**inputs, alpha=1e12, beta=1.0)
    assert loss.item() == pytest.approx(triplet_loss(inputs["scores"]).item(), rel=1e-9)
    only = quintuplet_loss(**inputs, weight_min=3.0, alpha=1e12, beta=1.0)
    assert only.item() == pytest.approx(3 * loss.item(), rel=1e-9)


@pytest.mark.parametrize(("weight_min", "expected"), [(None, -0.35), (0.0, 0.0), (0.5, 0.35)])
def test_weight_can_be_negative_unless_limited(weight_min: float | None, expected: float) -> None:
    # Each of the four queries: n = 0.45, o = 1.05, p = 0.3, so weight 1.5 - 0.6 / 0.3 = -0.5 and hinge 0.35.
    scores = torch.tensor([[0.3, 0.45], [0.45, 0.3]], dtype=torch.float64)
    high, low = torch.full((2,), 1.05, dtype=torch.float64), torch.full((2,), -1.0, dtype=torch.float64)
    inputs = {"scores": scores, "offline_captions": high, "offline_images": high}
    inputs |= {"offline_pairs": low, "partner_pairs": low}
    loss, gradients = value_and_gradients(inputs, weight_min=weight_min)
    offline = 4 * (1.05 - 0.3)
    assert loss.item() - offline == pytest.approx(2 * expected, abs=1e-12)
    # dL/do = 1 - h / alpha where the weight is not at its limit.
    slope = 1 - (0.35 / 0.3 if weight_min is None else 0)
    torch.testing.assert_close(gradients["offline_captions"], torch.full((2,), slope, dtype=torch.float64))


def test_pair_mask_drops_the_two_pairs_without_an_anchor() -> None:
    inputs = random_inputs(5)
    inputs |= {name: inputs[name] + 1 for name in ("offline_pairs", "partner_pairs")}
    mask = torch.tensor([True, False, True, True, False])
    loss, gradients = value_and_gradients(inputs, pair_mask=mask)
    for name in ("offline_pairs", "partner_pairs"):
        assert torch.equal(gradients[name], mask.double())
    own = inputs["scores"].diagonal()
    dropped = sum(((inputs[name] - own)[~mask]).clamp(min=0).sum() for name in ("offline_pairs", "partner_pairs"))
    assert dropped > 0
    torch.testing.assert_close(quintuplet_loss(**inputs) - loss, dropped)
    everything = torch.ones(5, dtype=torch.bool)
    assert torch.equal(quintuplet_loss(**inputs, pair_mask=everything), quintuplet_loss(**inputs))


@pytest.mark.parametrize("options", [{}, {"detach_weights": True}, {"weight_min": 0.0, "alpha": 0.1}])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradcheck(reduction: str, options: dict[str, object]) -> None:
    inputs = random_inputs(5)
    masks = {"positives": same_image([0, 1, 0, 2, 3]), "pair_mask": torch.tensor([True, False, True, True, True])}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return quintuplet_loss(**dict(zip(inputs, values, strict=True)), **masks, **options, reduction=reduction)

    values = tuple(value.clone().requires_grad_() for value in inputs.values())
    if options.get("detach_weights"):  # its gradient is by intention not that of its value
        assert not torch.autograd.gradcheck(loss, values, raise_exception=False)
    else:
        assert torch.autograd.gradcheck(loss, values)


def test_nothing_violated_gives_zero_and_zero_gradients() -> None:
    inputs = {"scores": torch.eye(4)} | {name: torch.zeros(4) for name in OFFLINE}
    loss, gradients = value_and_gradients(inputs)
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_without_online_negatives_the_offline_terms_are_left(ids: list[int], reduction: str) -> None:
    inputs = random_inputs(len(ids), dtype=torch.float32)
    with torch.autograd.set_detect_anomaly(True):
        loss, gradients = value_and_gradients(inputs, positives=same_image(ids), reduction=reduction)
    offline = sum((inputs[name] - inputs["scores"].diagonal()).clamp(min=0).sum().item() for name in OFFLINE)
    divisor = max(len(ids), 1) if reduction == "mean" else 1
    assert loss.shape == () and loss.item() == pytest.approx(offline / divisor, rel=1e-5)
    off_diagonal = ~torch.eye(len(ids), dtype=torch.bool)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not gradients["scores"][off_diagonal].any()


def test_scores_below_minus_ten_are_still_negatives() -> None:
    """The official code masks the diagonal by subtracting 10."""
    inputs = random_inputs(4)
    low = {name: value - 50 for name, value in inputs.items()}
    assert quintuplet_loss(**low).item() == pytest.approx(quintuplet_loss(**inputs).item(), rel=1e-10)
    large = {name: 40 * value for name, value in inputs.items()}
    plain = {name: value.numpy() for name, value in large.items()}
    options = {"online_margin": 0.2, "offline_margin": 0.0, "alpha": 0.3, "beta": 1.5, "weight_min": None}
    masks = {"positives": np.eye(4, dtype=bool), "pair_mask": np.ones(4, dtype=bool)}
    expected = naive(plain, **options, **masks, reduction="sum")
    assert quintuplet_loss(**large).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_score_is_never_hidden(value: float) -> None:
    places = [("scores", cell) for cell in itertools.product(range(3), range(3))]
    places += [(name, (row,)) for name in OFFLINE for row in range(3)]
    for name, cell in places:
        inputs = {"scores": torch.eye(3) * 0.9} | {name: torch.zeros(3) for name in OFFLINE}
        inputs[name][cell] = value
        for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):
            for pair_mask in (None, torch.zeros(3, dtype=torch.bool)):
                for reduction in ("sum", "mean"):
                    options = {"positives": positives, "pair_mask": pair_mask, "reduction": reduction}
                    assert not quintuplet_loss(**inputs, **options).isfinite(), (name, cell, options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = {name: value.to(dtype) for name, value in random_inputs(6, dtype=torch.float32).items()}
    whole = {name: value.float() for name, value in inputs.items()}
    expected, expected_gradients = value_and_gradients(whole)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradients = value_and_gradients(inputs)
            double, _ = value_and_gradients({name: value.double() for name, value in inputs.items()})
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert all(torch.equal(gradients[name], expected_gradients[name].to(dtype)) for name in inputs)
        assert double.dtype == torch.float64


def test_layout_of_the_input_does_not_matter() -> None:
    inputs = random_inputs(5)
    strided = {name: value.repeat_interleave(2, dim=-1)[..., ::2] for name, value in inputs.items()}
    assert not strided["scores"].is_contiguous()
    assert torch.equal(quintuplet_loss(**strided), quintuplet_loss(**inputs))
    flat = {"scores": torch.tensor(0.5).expand(4, 4)} | {name: torch.tensor(0.5).expand(4) for name in OFFLINE}
    assert quintuplet_loss(**flat).item() == pytest.approx(2 * 4 * 1.5 * 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.zeros(2, 3)}, r"scores has shape \(2, 3\)"),
        ({"scores": torch.zeros(2, 2, dtype=torch.long)}, "scores is torch.int64"),
        ({"offline_captions": torch.zeros(3)}, r"offline_captions has shape \(3,\); the scores have \(2, 2\)"),
        ({"offline_images": torch.zeros(2, 1)}, r"offline_images has shape \(2, 1\)"),
        ({"offline_pairs": torch.zeros(2, device="meta")}, "offline_pairs is on meta; the scores are on cpu"),
        ({"partner_pairs": torch.zeros(2, dtype=torch.long)}, "partner_pairs is torch.int64"),
        ({"partner_pairs": [0.0, 0.0]}, "partner_pairs is list"),
        ({"online_margin": -0.1}, "online_margin is -0.1; give a number of at least 0"),
        ({"offline_margin": "0"}, "offline_margin is '0'"),
        ({"alpha": 0.0}, "alpha is 0.0; give a number above 0"),
        ({"beta": -1.0}, "beta is -1.0; give a number of at least 0"),
        ({"weight_min": float("nan")}, "weight_min is nan; give a finite number"),
        ({"reduction": "average"}, 'unknown reduction "average"'),
        ({"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        ({"pair_mask": torch.ones(2)}, "pair_mask is torch.float32"),
        ({"pair_mask": [True, False]}, "pair_mask is list"),
        ({"pair_mask": torch.ones(3, dtype=torch.bool)}, r"pair_mask has shape \(3,\); the scores have \(2, 2\)"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    inputs = {"scores": torch.zeros(2, 2)} | {name: torch.zeros(2) for name in OFFLINE}
    with pytest.raises(ItmError, match=message):
        quintuplet_loss(**(inputs | changes))
