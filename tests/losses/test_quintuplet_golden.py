"""quintuplet_loss and its gradients are those of AOQ's official code, over VSRN and over BFAN.

``fixtures/golden_quintuplet.npz`` holds arrays of the shared ``golden/aoq.npz``; the same checks run over that archive
where it is present. Its ``vsrn_summed`` is out: the official loss without hardest negatives has a slip (aoq.md, B3).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES, check_extract
from losses.positives import same_image
from losses.quintuplet_cases import OFFLINE, Inputs, value_and_gradients

from lavis_itm_plugins.losses import quintuplet_loss

FIXTURE = FIXTURES / "golden_quintuplet.npz"
OFFICIAL = (
    *("vsrn_easy", "vsrn_hard", "vsrn_hyper", "vsrn_negweight", "vsrn_f32", "vsrn_b1", "vsrn_dupimage"),
    *("bfan_equal", "bfan_prob"),
)
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 5e-5, "atol": 5e-5}}
Golden = np.lib.npyio.NpzFile


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


def test_fixture_is_part_of_the_shared_archive(shared: Path) -> None:
    check_extract(FIXTURE, shared / "golden" / "aoq.npz")


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
