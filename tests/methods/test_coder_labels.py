"""Pseudo labels of itm_coder: their precision, weight, pairing and targets, and the numbers that show a collapse."""

from __future__ import annotations

import pytest
import torch
from methods.coder_stubs import batch_of, make_coder
from torch.nn.functional import cross_entropy, normalize

from lavis_itm_plugins.methods.coder_labels import used
from lavis_itm_plugins.methods.coder_selection import mean_cosine


def test_labels_are_never_made_in_half_precision(monkeypatch) -> None:
    labels = make_coder(monkeypatch, labels={"prototypes": 4}).float().labels
    rows = normalize(torch.randn(6, 8), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = labels.codes(rows)
    assert torch.equal(mixed, labels.codes(rows))


def test_label_weight_rises(monkeypatch) -> None:
    coder = make_coder(monkeypatch, labels={"prototypes": 4, "warmup_epochs": 2, "weight": 0.4}, dictionary={"size": 2})
    steps = [{"epoch": epoch, "iters": done, "num_iters_per_epoch": 10} for epoch, done in ((0, 0), (0, 5), (5, 0))]
    weights = [coder.labels.weight(step) for step in steps]
    assert weights == pytest.approx([0.0, 0.1, 0.4])
    assert coder(batch_of([0, 1, 2], epoch=0, iters=0, num_iters_per_epoch=10))["loss_labels"] == 0


@pytest.mark.parametrize("pairing", ["self", "swap", "mean"])
def test_pairing_and_hard_targets(monkeypatch, pairing) -> None:
    labels = {"prototypes": 4, "pairing": pairing, "targets": "hard", "extra_rows": 3}
    coder = make_coder(monkeypatch, labels=labels, dictionary={"size": 4})
    concepts = {side: normalize(torch.randn(2, 8, dtype=torch.float64), dim=1) for side in ("image", "caption")}
    # the largest of each row: 0, 1, 2, 3
    codes = torch.full((4, 4), 0.1, dtype=torch.float64) + 0.6 * torch.eye(4, dtype=torch.float64)
    wanted = {"self": ([0, 1], [2, 3]), "swap": ([2, 3], [0, 1]), "mean": ([2, 1], [2, 1])}
    images, captions = wanted[pairing]
    # the means of an image's and its caption's codes are largest at 2 and 1
    codes[2, 2] += 0.1
    codes[1, 1] += 0.1
    classes = normalize(coder.labels.classifier, dim=1).T / 0.1
    expected = sum(
        cross_entropy(concepts[side] @ classes, torch.tensor(target))
        for side, target in (("image", images), ("caption", captions))
    )
    torch.testing.assert_close(coder.labels(concepts, codes), expected / 2)
    coder(batch_of([0, 1]))
    coder.after_step()
    assert coder(batch_of([2, 3]))["loss"].isfinite()


def test_health_numbers() -> None:
    vectors = normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    cosines = vectors @ vectors.T
    expected = (cosines.sum() - cosines.diagonal().sum()) / (7 * 6)
    torch.testing.assert_close(mean_cosine(vectors), expected)
    assert mean_cosine(vectors[:1]).abs() < 1e-12
    assert used(torch.eye(4)) == 1 and used(torch.eye(4)[[0, 0]]) == pytest.approx(0.25)
