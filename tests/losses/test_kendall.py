"""kendall_loss against the reference numbers of BCLS, python loops, and everything that must not slip through.

``fixtures/golden_kendall.npz`` is an extract of the shared golden archive ``bcls.npz``; the same checks run over the
whole archive where it is present.
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
from lavis_itm_plugins.losses import kendall_loss

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_kendall.npz"
GLOBALS = kendall_loss.__wrapped__.__globals__  # of its own module, which --doctest-modules may import once more
SPLITS = ("halves", "all", "ends", "anchor", "none")
MININGS = ("hardest", "mean")
SURROGATES = ("hinge", "softplus", "tanh")
WAYS = list(itertools.product(SPLITS, MININGS, SURROGATES))


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    shared = request.param == "shared"
    return np.load(request.getfixturevalue("shared") / "golden" / "bcls.npz" if shared else FIXTURE)


def value_and_gradient(scores: torch.Tensor, labels: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    loss = kendall_loss(leaf, labels, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(2, size, size, dtype=torch.float64, generator=generator)
    return 2 * scores - 1, labels


def golden_options(name: str, parameters: dict[str, float], window: int, stride: int) -> dict[str, object]:
    """Options of the golden loss ``name``: ``kendall_all_*``, ``kendall_anchor_hard`` or ``kendall_sw_*``."""
    gap, margin = parameters["gap"], parameters["m"]
    options = {"window": window, "stride": stride, "temperature": parameters["tk"], "margin": margin, "gap": 0.0}
    parts = name.split("_")[1:]
    if parts[0] == "sw":
        options |= {"split": parts[1], "mining": {"hard": "hardest", "mean": "mean"}[parts[2]], "surrogate": parts[3]}
        return options | ({"gap": gap} if parts[-1] == "gap" else {})
    if parts[0] == "anchor":
        return options | {"split": "anchor", "gap": gap}
    options |= {"split": "none", "mining": "mean", "surrogate": parts[1]}
    special = {"all_hinge": {"gap": gap, "margin": 0.0}, "all_softplus": {"gap": gap}, "all_tanh": {"margin": 0.0}}
    return options | special.get("_".join(parts), {})


INEXPRESSIBLE = {"kendall_released", "kendall_all_hinge_pairs"}  # one denominator for the batch; rows of labels for t2i


@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden(golden: np.lib.npyio.NpzFile, case: str) -> None:
    parameters = dict(zip(golden["params.names"].tolist(), golden["params.values"].tolist(), strict=True))
    names = [key.split(".")[2] for key in golden.files if key.startswith(f"{case}.loss.kendall")]
    names = sorted(set(names) - INEXPRESSIBLE)
    assert len(names) == 16
    scores, labels = (torch.from_numpy(golden[f"{case}.{name}"]) for name in "SY")
    for name in names:
        options = golden_options(name, parameters, *golden[f"{case}.w_stride"].tolist())
        loss, gradient = value_and_gradient(scores, labels, **options)
        assert loss.item() == pytest.approx(golden[f"{case}.loss.{name}"].item(), rel=1e-8, abs=1e-12), name
        expected = torch.from_numpy(golden[f"{case}.gradS.{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8, msg=name)
        single, _ = value_and_gradient(scores.float(), labels, **options)
        assert single.dtype == torch.float32 and single.item() == pytest.approx(loss.item(), rel=5e-5, abs=1e-5)


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    whole, part = np.load(shared / "golden" / "bcls.npz"), np.load(FIXTURE)
    for key in part.files:
        np.testing.assert_array_equal(part[key], whole[key])


@pytest.mark.parametrize("name", sorted(INEXPRESSIBLE))
@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden_variants_that_we_do_not_train(shared: Path, name: str, case: str) -> None:
    """The released loss asks captions for the order of the rows of labels; both divide by the pairs of the batch."""
    archive = np.load(shared / "golden" / "bcls.npz")
    scores, labels = (torch.from_numpy(archive[f"{case}.{part}"]) for part in "SY")
    scores.requires_grad_()
    directions = []
    for matrix, targets in ((scores, labels), (scores.T, labels if name == "kendall_released" else labels.T)):
        pairs = targets[:, :, None] - targets[:, None, :] > 0.15
        inverted = (matrix[:, None, :] - matrix[:, :, None]).clamp(min=0)
        directions.append((inverted * pairs).sum() / max(int(pairs.sum()), 1))
    loss = sum(directions) / 2
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(archive[f"{case}.loss.{name}"]), rtol=1e-10, atol=1e-12)
    expected = torch.from_numpy(archive[f"{case}.gradS.{name}"])
    torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-8)


def naive_cost(difference: float, surrogate: str, margin: float, temperature: float) -> float:
    if surrogate == "hinge":
        return max(margin - difference, 0.0)
    if surrogate == "softplus":
        return temperature * float(np.logaddexp(0, (margin - difference) / temperature))
    return (1 - math.tanh((difference - margin) / temperature)) / 2


def naive_groups(order: list[int], window: int, stride: int, split: str) -> list[list[tuple[int, int]]]:
    """Pairs of candidates, first the one with the higher label or an equal one, of each window or anchor."""
    size = len(order)
    if split == "anchor":
        return [[(order[a], order[b]) for b in range(a + 1, size)] for a in range(size)]
    if split == "none" or size <= window:
        windows = [order]
    else:
        windows = [order[p : p + window] for p in range(0, size - window + 1, stride)]
        if (size - window) % stride:
            windows.append(order[-window:])
    half = min(window, size) // 2
    if split == "halves":
        return [[(a, b) for a in ranks[:half] for b in ranks[len(ranks) - half :]] for ranks in windows]
    if split == "ends":
        return [[(ranks[0], ranks[-1])] for ranks in windows]
    return [list(itertools.combinations(ranks, 2)) for ranks in windows]


def naive(scores, labels, *, window, stride, split, mining, gap, **options) -> float:
    """One query, one window, one pair at a time."""
    directions = []
    for matrix, targets in ((scores, labels), (scores.T, labels.T)):
        queries = []
        for s, y in zip(matrix.tolist(), targets.tolist(), strict=True):
            groups = []
            for pairs in naive_groups(sorted(range(len(y)), key=lambda j: -y[j]), window, stride, split):
                costs = [naive_cost(s[a] - s[b], **options) for a, b in pairs if y[a] - y[b] > gap]
                if costs:
                    groups.append(max(costs) if mining == "hardest" else sum(costs) / len(costs))
            if groups:
                queries.append(sum(groups) / len(groups))
        directions.append(sum(queries) / len(queries) if queries else 0.0)
    return sum(directions) / 2


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels with many exact ties, in float64."""
    size = draw(st.integers(0, 9))
    cells, levels = size * size, draw(st.sampled_from([1, 3, 64]))
    scores = draw(st.lists(st.integers(-8, 8), min_size=cells, max_size=cells))
    labels = draw(st.lists(st.integers(0, levels), min_size=cells, max_size=cells))
    return tuple(torch.tensor(v, dtype=torch.float64).reshape(size, size) / 8 for v in (scores, labels))


options_of_all_ways = st.fixed_dictionaries(
    {
        "window": st.integers(1, 10),
        "stride": st.integers(1, 5),
        "split": st.sampled_from(SPLITS),
        "mining": st.sampled_from(MININGS),
        "surrogate": st.sampled_from(SURROGATES),
        "margin": st.sampled_from([0.0, 0.05, 0.25]),
        "temperature": st.sampled_from([0.05, 1.0]),
        "gap": st.sampled_from([0.0, 0.125, 1.0]),
    }
)


@settings(deadline=None, max_examples=150)
@given(data=batches(), options=options_of_all_ways, budget=st.sampled_from([1, 40, 2**24]))
def test_equals_the_loops(data, options, budget) -> None:
    scores, labels = data
    before = scores.clone(), labels.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        loss, gradient = value_and_gradient(scores, labels, **options)
    assert loss.item() == pytest.approx(naive(scores, labels, **options), rel=1e-10, abs=1e-12)
    assert torch.equal(scores, before[0]) and torch.equal(labels, before[1])
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # only differences of scores enter
    transposed = kendall_loss(scores.T, labels.T, **options)
    assert transposed.item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
def test_the_chunk_does_not_matter(monkeypatch, split: str, mining: str, surrogate: str) -> None:
    scores, labels = batch(11)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "window": 5, "stride": 2, "margin": 0.1}
    whole = value_and_gradient(scores, labels, **options)
    for budget in (1, 500):
        monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        for part, expected in zip(value_and_gradient(scores, labels, **options), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("mining", MININGS)
def test_memory_follows_the_budget(monkeypatch, mining: str) -> None:
    """No tensor is larger than the budget, in forward and backward; without chunks one would hold 36 times as much."""
    scores, labels = batch(18)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    kept = []
    monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", 18 * 18)
    leaf = scores.requires_grad_()
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Watch(), pack:
        loss = kendall_loss(leaf, labels, split="none", mining=mining)
        loss.backward()
    assert largest <= 2 * 18 * 18
    assert max(kept) <= 2 * 18 * 18


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
def test_gradcheck(monkeypatch, split: str, mining: str, surrogate: str) -> None:
    scores, labels = batch(4)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "window": 3, "stride": 1, "temperature": 0.4}
    for budget in (1, 2**24):
        monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        assert torch.autograd.gradcheck(lambda s: kendall_loss(s, labels, **options), (scores.requires_grad_(),))


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_ties_across_the_halves_do_not_count(gap: float) -> None:
    """Labels 1, 0.5 | 0.5, 0: the pair (0.5, 0.5) has the smallest difference of scores and is no pair."""
    labels = torch.tensor([[1.0, 0.5, 0.5, 0.0]]).expand(4, 4).clone()
    scores = torch.tensor([[0.5, 0.0, 0.9, 0.1]]).expand(4, 4).clone()
    # Rows: lowest difference among (0, 2) = -0.4, (0, 3), (1, 3) = -0.1. Columns: labels constant, no pair.
    assert kendall_loss(scores, labels, window=4, gap=gap).item() == pytest.approx(0.2)


def test_captions_are_ranked_by_columns() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    scores = torch.tensor([[0.2, 0.7], [0.0, 0.0]])
    # Image 0 inverts its captions by 0.5, image 1 has a tie; caption 0 has a tie, caption 1 inverts its images by 0.7.
    assert kendall_loss(scores, labels).item() == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_no_pair_gives_zero_with_a_graph(split: str, mining: str, surrogate: str, size: int) -> None:
    scores, labels = batch(size)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "margin": 0.3, "window": 3, "stride": 1}
    for targets, gap in ((torch.full_like(labels, 0.7), 0.0), (labels, 1.0)):
        with torch.autograd.set_detect_anomaly(True):
            loss, gradient = value_and_gradient(scores, targets, gap=gap, **options)
        assert loss.shape == () and loss == 0
        assert torch.equal(gradient, torch.zeros_like(scores))


@pytest.mark.parametrize("split", ["halves", "all", "ends"])
def test_a_window_of_one_rank_holds_no_pair(split: str) -> None:
    scores, labels = batch(5)
    loss, gradient = value_and_gradient(scores, labels, split=split, window=1, stride=1, margin=0.5)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize(("split", "mining"), itertools.product(SPLITS, MININGS))
def test_invariances(split: str, mining: str) -> None:
    scores, labels = batch(9)
    options = {"split": split, "mining": mining, "surrogate": "softplus", "window": 4, "stride": 3}
    loss = kendall_loss(scores, labels, **options)
    moved = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kendall_loss(scores[moved][:, moved], labels[moved][:, moved], **options), loss)
    torch.testing.assert_close(kendall_loss(scores, labels.exp() - 7, **options), loss)
    torch.testing.assert_close(kendall_loss(scores + 3, labels, **options), loss)


def test_extremes_of_the_order() -> None:
    _, labels = batch(8)
    for split, mining in itertools.product(SPLITS, MININGS):
        options = {"split": split, "mining": mining, "window": 4, "stride": 2}
        assert kendall_loss(labels**3, labels, **options) == 0
        reversed_ = kendall_loss(-labels, labels, surrogate="tanh", temperature=1e-6, **options)
        assert reversed_.item() == pytest.approx(1)


def test_sharp_tanh_is_kendalls_coefficient() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores, labels = batch(12)
    pairs = [*zip(scores, labels, strict=True), *zip(scores.T, labels.T, strict=True)]
    expected = np.mean([(1 - stats.kendalltau(s, y).statistic) / 2 for s, y in pairs])
    loss = kendall_loss(scores, labels, split="none", mining="mean", surrogate="tanh", temperature=1e-9)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_score_is_never_hidden(split: str, mining: str, value: float) -> None:
    for cell in itertools.product(range(3), range(3)):
        scores, labels = batch(3)
        scores[cell] = value
        for window, targets in ((16, labels), (1, labels), (16, torch.ones_like(labels))):
            assert not kendall_loss(scores, targets, split=split, mining=mining, window=window).isfinite()


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(mining: str, dtype: torch.dtype) -> None:
    scores, labels = (part.to(dtype) for part in batch(6))
    options = {"mining": mining, "surrogate": "softplus", "window": 4, "stride": 1}
    expected, expected_gradient = value_and_gradient(scores.float(), labels.float(), **options)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(scores, labels, **options)
            double, _ = value_and_gradient(scores.double(), labels, **options)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradient.to(dtype))
        assert double.dtype == torch.float64


def test_labels_get_no_gradient_and_layout_does_not_matter() -> None:
    scores, labels = batch(8)
    scores, labels = scores[:4, ::2], labels[:4, ::2].requires_grad_()
    loss = kendall_loss(scores.requires_grad_(), labels, surrogate="softplus")
    loss.backward()
    assert labels.grad is None
    assert torch.equal(kendall_loss(scores.contiguous(), labels.contiguous(), surrogate="softplus"), loss)


ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        (torch.zeros(2, 3), ZERO, {}, r"scores has shape \(2, 3\)"),
        (ZERO.long(), ZERO, {}, "scores is torch.int64"),
        (ZERO, np.zeros((2, 2)), {}, "labels is a ndarray"),
        (ZERO, ZERO.bool(), {}, "labels is torch.bool"),
        (ZERO, torch.zeros(3, 3), {}, r"labels has shape \(3, 3\); the scores have \(2, 2\)"),
        (ZERO, ZERO.to("meta"), {}, "labels is on meta"),
        (ZERO, ZERO.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)), {}, r"labels.*\(0, 1\)"),
        (ZERO, ZERO - torch.inf, {}, "4 of 4 values of labels are not finite"),
        (ZERO, ZERO, {"split": "half"}, 'unknown split "half"; did you mean halves'),
        (ZERO, ZERO, {"mining": "hard"}, 'unknown mining "hard"'),
        (ZERO, ZERO, {"surrogate": None}, "unknown surrogate"),
        (ZERO, ZERO, {"window": 0}, "window is 0; give a whole number of at least 1"),
        (ZERO, ZERO, {"stride": 1.5}, "stride is 1.5"),
        (ZERO, ZERO, {"stride": True}, "stride is True"),
        (ZERO, ZERO, {"margin": -0.1}, "margin is -0.1"),
        (ZERO, ZERO, {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (ZERO, ZERO, {"gap": "0.3"}, "gap is '0.3'"),
        (ZERO, ZERO, {"gap": -0.3}, "gap is -0.3"),
    ],
)
def test_bad_input_is_named(scores, labels, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        kendall_loss(scores, labels, **options)


def test_numpy_numbers_are_numbers() -> None:
    scores, labels = batch(5)
    expected = kendall_loss(scores, labels, window=4, stride=2, gap=0.25)
    assert torch.equal(
        kendall_loss(scores, labels, window=np.int64(4), stride=np.int32(2), gap=np.float32(0.25)), expected
    )
