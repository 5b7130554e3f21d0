"""triplet_loss and its gradient are those of the official DBL, VSE++ and BCLS code.

``fixtures/golden_triplet.npz`` holds arrays of the shared golden archives under ``ARCHIVE/KEY``; the same checks run
over the whole archives where those are present.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES
from losses.positives import same_image
from losses.triplet_cases import value_and_gradient

from lavis_itm_plugins.losses import triplet_loss

FIXTURE = FIXTURES / "golden_triplet.npz"
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
