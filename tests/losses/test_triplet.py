"""triplet_loss against official numbers, a double loop, and everything that must not slip through.

``fixtures/golden_triplet.npz`` holds arrays of the shared golden archives under ``ARCHIVE/KEY``; the same checks run
over the whole archives where those are present.
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
from lavis_itm_plugins.losses import triplet_loss

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_triplet.npz"
NEGATIVES = ("hardest", "all", "soft")
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 5e-5, "atol": 5e-5}}


class Golden:
    """Arrays by ``ARCHIVE/KEY``, from the fixture or from the shared archives."""

    def __init__(self, shared: Path | None = None) -> None:
        if shared is None:
            self.archives = {"": np.load(FIXTURE)}
        else:
            self.archives = {
                f"{name}/": np.load(shared / "golden" / f"{name}.npz") for name in ("dbl", "matchers", "bcls")
            }

    def keys(self, start: str) -> list[str]:
        every = (prefix + key for prefix, archive in self.archives.items() for key in archive.files)
        return [key for key in every if key.startswith(start)]

    def __getitem__(self, key: str) -> np.ndarray:
        prefix = next(prefix for prefix in self.archives if key.startswith(prefix))
        return self.archives[prefix][key[len(prefix) :]]


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.getfixturevalue("shared") if request.param == "shared" else None)


def value_and_gradient(scores: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    loss = triplet_loss(leaf, **options)
    loss.backward()
    return loss.detach(), leaf.grad


def same_image(ids: np.ndarray | list[int]) -> torch.Tensor:
    ids = torch.as_tensor(ids)
    return ids[:, None] == ids


def test_fixture_is_part_of_the_shared_archives(shared: Path) -> None:
    whole, part = Golden(shared), Golden()
    for key in part.keys(""):
        np.testing.assert_array_equal(part[key], whole[key])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, "f64"), (torch.float32, "f32")])
def test_golden_birank(golden: Golden, dtype: torch.dtype, precision: str) -> None:
    keys = [key for key in golden.keys("dbl/out/birank/") if key.endswith(f"loss_{precision}")]
    assert len(keys) >= 60
    for key in keys:
        source, size, tag = key.split("/")[3:6]
        margin, mode = tag[1:].split("_")
        scores = torch.from_numpy(golden[f"dbl/in/{source}/{size}/scores"]).to(dtype)
        negatives = {"max": "hardest", "sum": "all"}[mode]
        loss, gradient = value_and_gradient(scores, margin=float(margin), negatives=negatives)
        torch.testing.assert_close(loss, torch.from_numpy(golden[key]), **TOLERANCE[dtype], msg=key)
        expected = torch.from_numpy(golden[key.replace("loss_", "grad_")])
        torch.testing.assert_close(gradient, expected, **TOLERANCE[dtype], msg=key)


def test_golden_same_image_cells_are_no_negatives(golden: Golden) -> None:
    keys = [key for key in golden.keys("dbl/ext/fnmask/birank/") if key.endswith("/loss")]
    assert len(keys) >= 2
    for key in keys:
        size = key.split("/")[4]
        scores = torch.from_numpy(golden[f"dbl/in/real/{size}/scores"]).double()
        loss, gradient = value_and_gradient(scores, positives=same_image(golden[f"dbl/in/ids/{size}/dup"]))
        torch.testing.assert_close(loss, torch.from_numpy(golden[key]), **TOLERANCE[torch.float64])
        torch.testing.assert_close(
            gradient, torch.from_numpy(golden[key.replace("loss", "grad")]), **TOLERANCE[torch.float64]
        )


@pytest.mark.parametrize(
    ("case", "cell", "value"),
    [
        ("nan_target_off", (1, 2), torch.nan),
        ("nan_target_diag", (3, 3), torch.nan),
        ("inf_target_off", (1, 2), torch.inf),
    ],
)
def test_golden_non_finite(golden: Golden, case: str, cell: tuple[int, int], value: float) -> None:
    scores = torch.from_numpy(golden["dbl/in/real/8/scores"]).clone()
    scores[cell] = value
    loss, _ = value_and_gradient(scores)
    torch.testing.assert_close(loss, torch.from_numpy(golden[f"dbl/edge/{case}/birank/loss"]), equal_nan=True)


@pytest.mark.parametrize("case", ["triplet_max", "triplet_sum", "triplet_order_max"])
def test_golden_vsepp(golden: Golden, case: str) -> None:
    margin = float(golden[f"matchers/{case}/hp/margin"])
    negatives = "all" if case.endswith("sum") else "hardest"
    expected = torch.from_numpy(golden[f"matchers/{case}/out/loss"])
    scores = torch.from_numpy(golden[f"matchers/{case}/out/scores"])
    torch.testing.assert_close(
        triplet_loss(scores, margin=margin, negatives=negatives), expected, **TOLERANCE[torch.float64]
    )
    if case == "triplet_order_max":  # its scores are no product of the embeddings
        return
    embeddings = {name: torch.from_numpy(golden[f"matchers/{case}/in/{name}"]) for name in ("images", "captions")}
    images, captions = (value.double().requires_grad_() for value in embeddings.values())
    triplet_loss(images @ captions.T, margin=margin, negatives=negatives).backward()
    for name, leaf in (("images", images), ("captions", captions)):
        expected = torch.from_numpy(golden[f"matchers/{case}/grad/{name}"])
        torch.testing.assert_close(leaf.grad, expected, **TOLERANCE[torch.float64])


BCLS = {
    "triplet_hn": {"negatives": "hardest"},
    "triplet_sn_lse": {"negatives": "soft", "temperature": 0.01},
    "triplet_sn_lse_loose": {"negatives": "soft", "temperature": 0.1},
}


@pytest.mark.parametrize("name", BCLS)
@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden_bcls(golden: Golden, name: str, case: str) -> None:
    scores = torch.from_numpy(golden[f"bcls/{case}.S"])
    positives = same_image(golden[f"bcls/{case}.img_id"])
    loss, gradient = value_and_gradient(scores, positives=positives, reduction="mean", **BCLS[name])
    torch.testing.assert_close(loss, torch.from_numpy(golden[f"bcls/{case}.loss.{name}"]), rtol=1e-10, atol=1e-12)
    # The golden gradients are central differences: good to 1e-9.
    torch.testing.assert_close(gradient, torch.from_numpy(golden[f"bcls/{case}.gradS.{name}"]), rtol=1e-8, atol=2e-9)


@pytest.mark.parametrize("case", "ACDF")
def test_golden_bcls_mean_hinge(golden: Golden, case: str) -> None:
    """BCLS's "sh" takes the mean over a query's negatives, ours the sum: B - 1 times it without same-image cells."""
    scores = torch.from_numpy(golden[f"bcls/{case}.S"])
    loss = triplet_loss(scores, negatives="all", reduction="mean") / (len(scores) - 1)
    torch.testing.assert_close(loss, torch.from_numpy(golden[f"bcls/{case}.loss.triplet_sh"]), rtol=1e-10, atol=1e-12)


def hinge_of_soft_maximum(gaps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """A query's cost [tau LSE_n(z_n / tau)]+, which the paper's group names beside the form that we train."""
    return (0.1 * (gaps / 0.1).logsumexp(dim=0)).clamp(min=0)


def weighted_hinges(gaps: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """A query's cost sum_n w_n [z_n]+ with w the softmax of the negatives' scores, without a gradient."""
    return ((negatives / 0.1).softmax(dim=0).detach() * gaps.clamp(min=0)).sum()


@pytest.mark.parametrize(
    ("name", "cost"), [("triplet_sn_hinge_lse", hinge_of_soft_maximum), ("triplet_sn_weighted", weighted_hinges)]
)
@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden_bcls_variants_that_we_do_not_train(shared: Path, name: str, cost, case: str) -> None:
    """References of both, so that the archive's numbers are known to mean what their names say."""
    archive = np.load(shared / "golden" / "bcls.npz")
    scores = torch.from_numpy(archive[f"{case}.S"]).requires_grad_()
    valid = ~same_image(archive[f"{case}.img_id"])
    directions = []
    for matrix in (scores, scores.T):
        asked = [q for q in range(len(matrix)) if valid[q].any()]
        costs = [cost(matrix[q][valid[q]] - matrix[q, q] + 0.2, matrix[q][valid[q]]) for q in asked]
        directions.append(sum(costs) / max(len(costs), 1) + 0 * matrix.sum())
    loss = sum(directions) / 2
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(archive[f"{case}.loss.{name}"]), rtol=1e-10, atol=1e-12)
    # The golden gradients are central differences: good to 1e-9.
    expected = torch.from_numpy(archive[f"{case}.gradS.{name}"])
    torch.testing.assert_close(scores.grad, expected, rtol=1e-8, atol=2e-9)


def naive(scores, *, margin, negatives, temperature, positives, reduction):
    """One query at a time, from the definition; an autograd-free double loop."""
    size, queries = len(scores), {"rows": {}, "columns": {}}
    for direction, matrix, match in (("rows", scores, positives), ("columns", scores.T, positives.T)):
        for q in range(size):
            z = [matrix[q][n] - matrix[q][q] + margin for n in range(size) if n != q and not match[q][n]]
            if z and negatives == "soft":
                queries[direction][q] = temperature * np.logaddexp.reduce([0.0, *(value / temperature for value in z)])
            elif z:
                hinges = [max(value, 0.0) for value in z]
                queries[direction][q] = max(hinges) if negatives == "hardest" else sum(hinges)
    costs = [list(direction.values()) for direction in queries.values()]
    if reduction == "sum":
        return sum(map(sum, costs))
    return sum(sum(cost) / len(cost) for cost in costs if cost) / 2


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A score matrix with many exact ties, in float64, and same-image cells."""
    size = draw(st.integers(0, 6))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=size * size, max_size=size * size))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    return torch.tensor(eighths, dtype=torch.float64).reshape(size, size) / 8, same_image(
        torch.tensor(ids, dtype=torch.long)
    )


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    margin=st.sampled_from([0.0, 0.125, 0.2, 0.25]),
    negatives=st.sampled_from(NEGATIVES),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_equals_the_double_loop(batch, margin, negatives, temperature, reduction) -> None:
    scores, positives = batch
    options = {"margin": margin, "negatives": negatives, "temperature": temperature, "reduction": reduction}
    before = scores.clone()
    loss = triplet_loss(scores, positives=positives, **options)
    expected = naive(scores.numpy(), positives=positives.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert torch.equal(scores, before)
    permutation = torch.randperm(len(scores))
    moved = scores[permutation][:, permutation], positives[permutation][:, permutation]
    assert triplet_loss(moved[0], positives=moved[1], **options).item() == pytest.approx(expected, abs=1e-12)
    assert triplet_loss(scores.T, positives=positives.T, **options).item() == pytest.approx(expected, abs=1e-12)


def official(scores: torch.Tensor, margin: float, positives: torch.Tensor) -> torch.Tensor:
    """The form that the official repositories share: two matrices of hinges, masked cells set to 0, the maximum."""
    excluded = positives | torch.eye(len(scores), dtype=torch.bool)
    own = scores.diagonal()
    rows = (margin + scores - own[:, None]).clamp(min=0).masked_fill(excluded, 0)
    columns = (margin + scores - own).clamp(min=0).masked_fill(excluded, 0)
    return rows.max(dim=1).values.sum() + columns.max(dim=0).values.sum()


@settings(deadline=None, max_examples=200)
@given(batch=batches(), margin=st.sampled_from([0.0, 0.125, 0.2, 0.25]))
def test_hardest_has_the_official_gradient_on_ties(batch, margin) -> None:
    scores, positives = batch
    if not len(scores):
        return
    leaf = scores.clone().requires_grad_()
    official(leaf, margin, positives).backward()
    _, gradient = value_and_gradient(scores, margin=margin, positives=positives)
    assert torch.equal(gradient, leaf.grad)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_gradcheck(negatives: str, reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    options = {
        "negatives": negatives,
        "temperature": 0.3,
        "reduction": reduction,
        "positives": same_image([0, 1, 0, 2, 3]),
    }
    assert torch.autograd.gradcheck(lambda s: triplet_loss(s, **options), (scores,))


def test_mean_leaves_out_queries_without_a_negative() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.9], [0.9, 0.5, 0.9], [0.1, 0.2, 0.5]])
    positives = torch.ones(3, 3, dtype=torch.bool)
    positives[2, 0] = positives[0, 2] = False
    # Image 1 has no valid negative. Rows: 0.2 + 0.9 - 0.5, and 0; columns alike for caption 0 (0) and 2 (0.6).
    assert triplet_loss(scores, positives=positives, reduction="mean").item() == pytest.approx(0.3)
    assert triplet_loss(scores, positives=positives).item() == pytest.approx(1.2)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_diagonal_is_a_positive_whatever_the_mask_says(negatives: str) -> None:
    scores, nothing = torch.randn(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(
        triplet_loss(scores, negatives=negatives, positives=nothing), triplet_loss(scores, negatives=negatives)
    )
    assert not nothing.any()


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", list(itertools.product(range(3), range(3))))
def test_non_finite_score_is_never_hidden(negatives: str, value: float, cell: tuple[int, int]) -> None:
    scores = torch.eye(3) * 0.9
    scores[cell] = value
    for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):  # (0, 2) and (2, 0), then all, are masked
        for reduction in ("sum", "mean"):
            options = {"negatives": negatives, "positives": positives, "reduction": reduction}
            assert not triplet_loss(scores, **options).isfinite(), options


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_no_negative_gives_zero_with_a_graph(negatives: str, reduction: str, ids: list[int]) -> None:
    scores = torch.randn(len(ids), len(ids))
    with torch.autograd.set_detect_anomaly(True):
        loss, gradient = value_and_gradient(
            scores, negatives=negatives, reduction=reduction, positives=same_image(torch.tensor(ids, dtype=torch.long))
        )
    assert loss.shape == () and loss == 0
    assert torch.equal(gradient, torch.zeros_like(scores))


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(negatives: str, dtype: torch.dtype) -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, expected_gradient = value_and_gradient(scores.float(), negatives=negatives)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(scores, negatives=negatives)
            double, _ = value_and_gradient(scores.double(), negatives=negatives)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradient.to(dtype))
        assert double.dtype == torch.float64


def test_layout_of_the_input_does_not_matter() -> None:
    scores = torch.randn(4, 8)[:, ::2]
    assert torch.equal(triplet_loss(scores), triplet_loss(scores.contiguous()))
    flat = torch.tensor(0.5).expand(4, 4)
    assert triplet_loss(flat).item() == pytest.approx(2 * 4 * 0.2)


@settings(deadline=None, max_examples=50)
@given(batch=batches(), temperature=st.sampled_from([1e-4, 0.01, 0.2]))
def test_soft_bounds_hardest(batch, temperature) -> None:
    scores, positives = batch
    hardest = triplet_loss(scores, positives=positives).item()
    soft, gradient = value_and_gradient(scores, negatives="soft", temperature=temperature, positives=positives)
    slack = 2 * len(scores) * temperature * np.log(1 + max(len(scores) - 1, 0))
    assert hardest - 1e-12 <= soft <= hardest + slack + 1e-12
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # only differences of scores enter


def test_soft_is_stable_at_the_ends_of_the_range() -> None:
    scores = (2 * torch.eye(4) - 1).half()
    for sign in (1, -1):
        loss, gradient = value_and_gradient(sign * scores, negatives="soft", temperature=1e-4)
        assert loss.isfinite() and gradient.isfinite().all()
        assert loss.item() == pytest.approx(max(0, 8 * (0.2 - sign * 2)), rel=1e-3)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 3), {}, r"scores has shape \(2, 3\)"),
        (torch.zeros(4), {}, r"scores has shape \(4,\)"),
        (torch.zeros(2, 2, dtype=torch.long), {}, "scores is torch.int64"),
        (np.zeros((2, 2)), {}, "scores is a ndarray"),
        (torch.zeros(2, 2), {"negatives": "hardst"}, 'unknown negatives "hardst"; did you mean hardest'),
        (torch.zeros(2, 2), {"negatives": None}, "unknown negatives"),
        (torch.zeros(2, 2), {"reduction": "average"}, 'unknown reduction "average"'),
        (torch.zeros(2, 2), {"margin": -0.1}, "margin is -0.1; give a number of at least 0"),
        (torch.zeros(2, 2), {"margin": "0.2"}, "margin is '0.2'"),
        (torch.zeros(2, 2), {"margin": float("nan")}, "margin is nan"),
        (torch.zeros(2, 2), {"margin": True}, "margin is True"),
        (torch.zeros(2, 2), {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (torch.zeros(2, 2), {"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        (torch.zeros(2, 2), {"positives": np.eye(2, dtype=bool)}, "positives is ndarray"),
        (torch.zeros(2, 2), {"positives": torch.ones(2, dtype=torch.bool)}, r"positives has shape \(2,\)"),
        (torch.zeros(2, 2), {"positives": torch.ones(2, 2, dtype=torch.bool, device="meta")}, "positives is on meta"),
    ],
)
def test_bad_input_is_named(scores, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        triplet_loss(scores, **options)


def test_numpy_numbers_are_numbers() -> None:
    scores = torch.randn(3, 3)
    assert torch.equal(triplet_loss(scores, margin=np.float64(0.2)), triplet_loss(scores, margin=0.2))
    assert isinstance(triplet_loss(scores, margin=np.float32(0.25)), torch.Tensor)
