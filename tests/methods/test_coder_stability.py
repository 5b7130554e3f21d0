"""itm_coder's loss stays finite on odd batches, and no order, direction or precision changes it."""

from __future__ import annotations

import pytest
import torch
from methods.coder_stubs import OFF, batch_of, make_coder

from lavis_itm_plugins.losses.diversity_checks import KINDS


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_without_a_valid_negative(monkeypatch, rows) -> None:
    """A batch of one, and a batch of one image, on an empty dictionary."""
    coder = make_coder(monkeypatch, dictionary={"size": 4}, labels=False)
    parts = coder(batch_of(rows, [0] * len(rows)))
    parts["loss"].backward()
    assert parts["loss"] == 0
    for parameter in coder.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_identical_and_zero_vectors(monkeypatch, kind) -> None:
    coder = make_coder(
        monkeypatch, dcl={"weighting": kind, "temperature": 1e-3}, dictionary={"size": 4}, labels={"prototypes": 3}
    )
    for value in (1.0, 0.0):
        coder.matcher.images.data.fill_(value)
        coder.matcher.captions.data.fill_(value)
        parts = coder(batch_of([0, 1, 2]))
        parts["loss"].backward()
        coder.after_step()
        assert parts["loss"].isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in coder.parameters() if parameter.grad is not None)


def test_swapping_the_modalities_swaps_the_directions(monkeypatch) -> None:
    coder = make_coder(monkeypatch, **{**OFF, "dcl": {"beta": 0.5, "keys": "online"}, "dictionary": {"size": 0}})
    batch = batch_of([0, 1, 2, 3])
    before = coder(batch)["loss"].detach()
    images = coder.matcher.images.data.clone()
    coder.matcher.images.data.copy_(coder.matcher.captions.data)
    coder.matcher.captions.data.copy_(images)
    torch.testing.assert_close(coder(batch)["loss"].detach(), before, rtol=1e-12, atol=1e-14)


def test_order_of_the_batch_does_not_matter(monkeypatch) -> None:
    losses = []
    for rows in ([0, 1, 2, 3], [2, 0, 3, 1]):
        coder = make_coder(monkeypatch, dictionary={"size": 6}, labels={"prototypes": 4})
        coder(batch_of([4, 5]))
        coder.after_step()
        losses.append(coder(batch_of(rows))["loss"].detach())
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)


def test_autocast_changes_the_loss_by_little(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 4}, labels={"prototypes": 4}).float()
    batch = batch_of([0, 1, 2, 3])
    plain = coder(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = coder(batch)["loss"]
    torch.testing.assert_close(mixed, plain, rtol=1e-3, atol=1e-3)
