"""diversity_weights and diversity_contrastive_loss against the reference numbers of CODER, loops, and edge cases.

``fixtures/golden_diversity.npz`` is an extract of the shared golden archive ``coder.npz``; the same checks run over
the whole archive where it is present.
"""

from __future__ import annotations

import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights
from lavis_itm_plugins.losses.diversity import negative_spreads

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_diversity.npz"
KINDS = ("std", "none", "iso", "entropy", "adnce")
FORMS = ("nce", "lse")
WAYS = list(itertools.product(FORMS, KINDS))
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Golden:
    """Tensors of the archive by their name after ``dcl_``."""

    def __init__(self, path: Path) -> None:
        self.archive = np.load(path)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.archive[f"dcl_{name}"])

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self["q"].requires_grad_(), self["k"], self["neg"], self["mask"]


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    shared = request.param == "shared"
    return Golden(request.getfixturevalue("shared") / "golden" / "coder.npz" if shared else FIXTURE)


def batch(size: int = 4, slots: int = 7, dim: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Query, key, negatives on the unit sphere and a mask that leaves each query at least two negatives."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(2 * size + slots, dim, dtype=torch.float64, generator=generator)
    valid = torch.rand(size, slots, generator=generator) < 0.7
    valid[:, :2] = True
    return *torch.nn.functional.normalize(parts, dim=1).split([size, size, slots]), valid


def value_and_gradient(query: torch.Tensor, *others, **options) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = query.detach().clone().requires_grad_()
    loss = diversity_contrastive_loss(leaf, *others, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    whole, part = np.load(shared / "golden" / "coder.npz"), np.load(FIXTURE)
    for key in part.files:
        np.testing.assert_array_equal(part[key], whole[key])


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_golden_weights(golden: Golden, form: str, kind: str) -> None:
    query, _, negatives, valid = golden.inputs()
    temperature = 0.05 if form == "nce" else 1 / 90
    similarities = query @ negatives.T
    weights = diversity_weights(similarities, valid, kind=kind, temperature=temperature)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, golden[f"w_{form}_{kind}"], **EXACT)
    single = diversity_weights(similarities.float(), valid, kind=kind, temperature=temperature)
    torch.testing.assert_close(single, weights.float(), rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_golden_loss(golden: Golden, form: str, kind: str) -> None:
    query, key, negatives, valid = golden.inputs()
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
    query, _, negatives, valid = golden.inputs()
    counts, means, spreads = negative_spreads(query @ negatives.T, valid)
    assert torch.equal(counts[:, 0], valid.sum(dim=1))
    torch.testing.assert_close(means[:, 0], golden["mu"], **EXACT)
    torch.testing.assert_close(spreads[:, 0], golden["sigma"], **EXACT)
    torch.testing.assert_close(spreads.mean(), golden["sigma_bar"], **EXACT)


def test_golden_variants(golden: Golden) -> None:
    query, key, negatives, valid = golden.inputs()
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


def naive_weights(similarities, valid, *, kind, beta, temperature, spread=None) -> list[list[float]]:
    """One query, one negative at a time."""
    rows = [[s for s, m in zip(*row, strict=True) if m] for row in zip(similarities, valid, strict=True)]
    spreads = [float(np.std(row)) if row else 0.0 for row in rows]
    several = [spread_ for spread_, row in zip(spreads, rows, strict=True) if len(row) >= 2]
    typical = max(sum(several) / len(several) if several else 0.0, 1e-3) if spread is None else spread
    weights = []
    for row, own in zip(rows, spreads, strict=True):
        mean, exponents = sum(row) / max(len(row), 1), []
        logits = [s / temperature for s in row]
        shares = [math.exp(z - max(logits)) for z in logits]
        shares = [share / sum(shares) for share in shares]
        entropy = -sum(p * math.log(p) for p in shares if p)
        evenness = entropy / math.log(len(row)) if len(row) > 1 else 1.0
        for s in row:
            u = {
                "none": 0.0,
                "std": beta * (s - mean) / typical,
                "iso": beta * (min(max(own / typical, 0.5), 2.0) - 1) * (s - mean) / temperature,
                "entropy": beta * (1 - evenness) * (s - mean) / max(own, 1e-3),
                "adnce": -((s - 0.7) ** 2) / 2,
            }[kind]
            exponents.append(u if kind == "adnce" else min(max(u, -5.0), 5.0))
        total = sum(map(math.exp, exponents))
        weights.append([len(row) * math.exp(u) / total for u in exponents])
    filled = [iter(row) for row in weights]
    return [[next(row) if m else 0.0 for m in mask] for row, mask in zip(filled, valid, strict=True)]


def naive_loss(own, similarities, valid, *, form, temperature, slope, offset, **options) -> float:
    scale = temperature if form == "nce" else 1 / slope
    weights, losses = naive_weights(similarities, valid, temperature=scale, **options), []
    for p, row, w in zip(own, similarities, weights, strict=True):
        if form == "nce":
            total = sum(b * math.exp(s / temperature) for b, s in zip(w, row, strict=True))
            losses.append(math.log(math.exp(p / temperature) + total) - p / temperature)
        else:
            total = sum(b * math.exp(slope * (s - offset)) for b, s in zip(w, row, strict=True))
            losses.append(math.log1p(total) / slope - math.log1p(max(p, 0.0)))
    return sum(losses) / len(losses)


@st.composite
def dictionaries(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Embeddings of one or two axes on a coarse grid (equal similarities, zero vectors), and any mask."""
    size, slots, dim = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(1, 2))
    rows = 2 * size + slots
    cells = draw(st.lists(st.integers(-4, 4), min_size=rows * dim, max_size=rows * dim))
    mask = draw(st.lists(st.booleans(), min_size=size * slots, max_size=size * slots))
    parts = torch.tensor(cells, dtype=torch.float64).reshape(rows, dim).div(4).split([size, size, slots])
    return *parts, torch.tensor(mask, dtype=torch.bool).reshape(size, slots)


@settings(deadline=None, max_examples=150)
@given(
    data=dictionaries(),
    form=st.sampled_from(FORMS),
    kind=st.sampled_from(KINDS),
    beta=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    temperature=st.sampled_from([0.05, 1.0]),
    slope=st.sampled_from([1.0, 90.0]),
    offset=st.sampled_from([0.0, 0.5]),
    spread=st.sampled_from([None, 0.25]),
)
def test_equals_the_loops(data, form, kind, beta, temperature, slope, offset, spread) -> None:
    query, key, negatives, valid = data
    before = [part.clone() for part in data]
    own, similarities = (query * key).sum(dim=1).tolist(), (query @ negatives.T)
    weighting = {"kind": kind, "beta": beta, "temperature": temperature}
    weights = diversity_weights(similarities, valid, **weighting)
    expected = naive_weights(similarities.tolist(), valid.tolist(), **weighting)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64).view_as(weights), **EXACT)
    torch.testing.assert_close(weights.sum(dim=1), valid.sum(dim=1).double(), **EXACT)  # mean 1 over valid
    options = weighting | {"form": form, "slope": slope, "offset": offset, "spread": spread}
    loss = diversity_contrastive_loss(*data, **options)
    expected = naive_loss(own, similarities.tolist(), valid.tolist(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(torch.equal(part, old) for part, old in zip(data, before, strict=True))


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_gradcheck(form: str, kind: str) -> None:
    """The weights are constants of the gradient: against finite differences, hold them at their value."""
    query, key, negatives, valid = batch()
    options = {"form": form, "slope": 4.0, "temperature": 0.5}
    scale = 0.5 if form == "nce" else 0.25
    weights = diversity_weights(query @ negatives.T, valid, kind=kind, temperature=scale)

    def with_weights(q: torch.Tensor) -> torch.Tensor:
        own, similarities = (q * key).sum(dim=1), q @ negatives.T
        if form == "nce":
            return ((own / 0.5).exp() + (weights * (similarities / 0.5).exp()).sum(dim=1)).log().sub(own / 0.5).mean()
        return ((1 + (weights * (4 * (similarities - 0.5)).exp()).sum(dim=1)).log() / 4 - (1 + own.relu()).log()).mean()

    leaf = query.clone().requires_grad_()
    assert torch.autograd.gradcheck(with_weights, (leaf,))
    (expected,) = torch.autograd.grad(with_weights(leaf), leaf)
    loss, gradient = value_and_gradient(query, key, negatives, valid, kind=kind, **options)
    torch.testing.assert_close(loss, with_weights(query), **EXACT)
    torch.testing.assert_close(gradient, expected, **EXACT)
    if kind == "none":
        function = lambda q: diversity_contrastive_loss(q, key, negatives, valid, kind=kind, **options)  # noqa: E731
        assert torch.autograd.gradcheck(function, (leaf,))


def test_only_the_query_and_the_temperature_get_a_gradient() -> None:
    query, key, negatives, valid = batch()
    temperature = torch.tensor(0.1, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (query, key, negatives, temperature)]
    diversity_contrastive_loss(query, key, negatives, valid, temperature=temperature, kind="none").backward()
    assert query.grad is not None and key.grad is None and negatives.grad is None
    function = lambda t: diversity_contrastive_loss(query, key, negatives, valid, temperature=t, kind="none")  # noqa: E731
    assert torch.autograd.gradcheck(function, (leaves[3],))
    for kind in KINDS:
        assert not diversity_weights(query @ negatives.T, valid, kind=kind, temperature=temperature).requires_grad


def test_without_weights_it_is_cross_entropy() -> None:
    query, key, negatives, _ = batch()
    valid = torch.ones(4, 7, dtype=torch.bool)
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ negatives.T], dim=1) / 0.05
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    for options in ({"kind": "none"}, *({"kind": kind, "beta": 0.0} for kind in ("std", "iso", "entropy"))):
        torch.testing.assert_close(
            diversity_contrastive_loss(query, key, negatives, valid, **options), expected, **EXACT
        )


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_no_and_one_negative(form: str, kind: str) -> None:
    query, key, negatives, valid = batch()
    nothing = torch.zeros_like(valid)
    for mask, dictionary in ((nothing, negatives), (nothing[:, :0], negatives[:0])):
        with torch.autograd.set_detect_anomaly(True):
            loss, gradient = value_and_gradient(query, key, dictionary, mask, form=form, kind=kind)
        expected = 0.0 if form == "nce" else -(query * key).sum(dim=1).relu().log1p().mean().item()
        assert loss.item() == pytest.approx(expected, abs=1e-15) and gradient.isfinite().all()
        assert form == "lse" or (loss == 0 and not gradient.any())
        assert not diversity_weights(query @ dictionary.T, mask, kind=kind).any()
    one = nothing.clone()
    one[:, 3] = True
    torch.testing.assert_close(diversity_weights(query @ negatives.T, one, kind=kind), one.double(), **EXACT)
    empty, gradient = value_and_gradient(query[:0], key[:0], negatives, valid[:0], form=form, kind=kind)
    assert empty == 0 and empty.shape == () and gradient.shape == (0, 5)


@pytest.mark.parametrize(("form", "kind"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equal_embeddings_and_sharp_temperatures(form: str, kind: str, dtype: torch.dtype) -> None:
    unit = torch.eye(4)[:1].expand(5, 4).to(dtype)
    valid = ~torch.eye(5, dtype=torch.bool)
    for sign in (1, -1):
        options = {"form": form, "kind": kind, "temperature": 1e-3, "slope": 1000.0}
        loss, gradient = value_and_gradient(unit, sign * unit, unit, valid, **options)
        assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()
        weights = diversity_weights(sign * unit @ unit.T, valid, kind=kind, temperature=1e-3)
        torch.testing.assert_close(weights, valid.float())


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


@pytest.mark.parametrize(("form", "kind"), WAYS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_embedding_is_never_hidden(form: str, kind: str, value: float) -> None:
    for part, row in ((0, 1), (1, 3), (2, 0), (2, 6)):
        data = [tensor.clone() for tensor in batch()]
        data[3][:, 6] = False
        data[part][row, 2] = value
        assert not diversity_contrastive_loss(*data, form=form, kind=kind).isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_do_not_look_at_invalid_slots(kind: str) -> None:
    query, _, negatives, valid = batch()
    similarities = query @ negatives.T
    expected = diversity_weights(similarities, valid, kind=kind)
    assert torch.equal(diversity_weights(similarities.masked_fill(~valid, torch.nan), valid, kind=kind), expected)


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_half_precision_is_computed_in_float32(form: str, kind: str) -> None:
    *parts, valid = batch()
    halves = [part.bfloat16() for part in parts]
    expected, expected_gradient = value_and_gradient(*(part.float() for part in halves), valid, form=form, kind=kind)
    for enabled in (False, True):
        leaf = halves[0].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = diversity_contrastive_loss(leaf, *halves[1:], valid, form=form, kind=kind)
            double = diversity_contrastive_loss(*parts, valid, form=form, kind=kind)
        loss.backward()
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(leaf.grad, expected_gradient.bfloat16())
        assert double.dtype == torch.float64


E, MASK = torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(3)}, "query is no floating-point torch tensor"),
        ({"key": np.zeros((2, 3))}, "key is no floating-point torch tensor"),
        ({"negatives": torch.zeros(2, 3).long()}, "negatives is no floating-point torch tensor"),
        ({"key": torch.zeros(1, 3)}, r"key has shape \(1, 3\); the query has \(2, 3\)"),
        ({"negatives": torch.zeros(2, 4)}, "negatives has 4 columns; the query has 3"),
        ({"negatives": E.double()}, "negatives is torch.float64 on cpu; the query is torch.float32 on cpu"),
        ({"key": E.to("meta")}, "key is torch.float32 on meta"),
        ({"valid": MASK.float()}, "valid is torch.float32; give a torch.bool"),
        ({"valid": [[True]]}, "valid is list"),
        ({"valid": MASK[:1]}, r"valid has shape \(1, 2\); the similarities have \(2, 2\)"),
        ({"valid": MASK.to("meta")}, "valid is on meta"),
        ({"form": "nec"}, 'unknown form "nec"; did you mean nce'),
        ({"kind": "sdt"}, 'unknown kind "sdt"; did you mean std'),
        ({"beta": torch.nan}, "beta is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"slope": 0.0}, "slope is 0.0; give a number above 0"),
        ({"offset": "0.5"}, "offset is '0.5'"),
        ({"spread": -1.0}, "spread is -1.0; give a number of at least 0"),
        ({"spread": torch.ones(2)}, r"spread has shape \(2,\)"),
    ],
)
def test_bad_input_is_named(changed, message) -> None:
    with pytest.raises(ItmError, match=message):
        diversity_contrastive_loss(**({"query": E, "key": E, "negatives": E[:2], "valid": MASK} | changed))


@pytest.mark.parametrize("similarities", [torch.zeros(3), torch.zeros(2, 2).long(), [[0.0]]])
def test_bad_similarities_are_named(similarities) -> None:
    with pytest.raises(ItmError, match="similarities is no floating-point torch tensor"):
        diversity_weights(similarities, MASK)


def test_signatures_are_the_contract() -> None:
    weights, loss = (inspect.signature(f).parameters for f in (diversity_weights, diversity_contrastive_loss))
    assert {n: p.default for n, p in weights.items() if p.kind is p.KEYWORD_ONLY} == {
        "kind": "std",
        "beta": 0.5,
        "temperature": 0.05,
    }
    assert list(loss)[:4] == ["query", "key", "negatives", "valid"]
    assert [p.default for p in list(loss.values())[4:]] == [0.05, "nce", "std", 0.5, 90.0, 0.5, None]
