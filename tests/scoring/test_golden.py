"""Scores, gradients and batch statistics of the official code, in both precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scoring.golden import FILE, Case, arrays

EXACT, SINGLE = {"rtol": 1e-9, "atol": 1e-12}, {"rtol": 0.0, "atol": 1e-5}


def check(name: str, dtype: torch.dtype, path: Path) -> None:
    case = Case(name, dtype, path)
    module = case.module()
    images, captions = (case[f"in/{side}"].requires_grad_() for side in ("images", "captions"))
    scores = case.scores(module, images, captions)
    double = dtype == torch.float64
    if "nan_scores" in case:
        # where one item leaves nothing above the threshold, the official code divides 0 by 0
        assert scores.isfinite().all()
        finite = case["nan_scores"].isfinite()
        torch.testing.assert_close(scores[finite], case["nan_scores"][finite], **(EXACT if double else SINGLE))
        return
    torch.testing.assert_close(scores, case["out/scores"], **(EXACT if double else SINGLE))
    (scores * case["in/cotangent"]).sum().backward()
    found = {"grad/images": images.grad, "grad/captions": captions.grad}
    if module is not None:
        found |= {f"grad_w/{key}": value.grad for key, value in module.named_parameters()}
        found |= {f"out/after/{key}": value for key, value in module.named_buffers()}
    tolerance = {"rtol": 1e-8, "atol": 1e-11} if double else {"rtol": 1e-4, "atol": 5e-4 if "sgr_r36" in name else 1e-4}
    for key in found.keys() & case.arrays.keys():
        torch.testing.assert_close(found[key], case[key], msg=lambda text, key=key: f"{key}: {text}", **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("name", list(arrays()))
def test_official_scores_and_gradients(name, dtype):
    check(name, dtype, FILE)


def test_all_official_cases(shared):
    path = shared / "golden" / "matchers.npz"
    assert len(arrays(path)) == 39
    for name in arrays(path):
        check(name, torch.float64, path)
        check(name, torch.float32, path)
