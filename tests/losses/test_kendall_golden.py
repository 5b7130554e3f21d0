"""kendall_loss and its gradient are the reference numbers of BCLS, in every form that we train.

``fixtures/golden_kendall.npz`` is an extract of the shared golden archive ``bcls.npz``; the same checks run over the
whole archive where it is present.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES, check_extract
from losses.kendall_cases import value_and_gradient

FIXTURE = FIXTURES / "golden_kendall.npz"


@pytest.fixture(params=["fixture", "shared"])
def golden(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    shared = request.param == "shared"
    return np.load(request.getfixturevalue("shared") / "golden" / "bcls.npz" if shared else FIXTURE)


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
    check_extract(FIXTURE, shared / "golden" / "bcls.npz")


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
