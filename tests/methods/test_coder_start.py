"""What a run of itm_coder starts from, and the matchers and runners that it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from methods.coder_stubs import batch_of, make_coder

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import Matcher


def test_the_key_tower_starts_again_from_a_matcher_s_checkpoint(monkeypatch, tmp_path) -> None:
    coder, other = make_coder(monkeypatch, dictionary={"size": 13}), make_coder(monkeypatch, seed=1)
    coder(batch_of(list(range(6))))
    coder.after_step()
    assert coder.keys.filled > 0
    torch.save({"model": other.matcher.state_dict()}, tmp_path / "plain.pth")
    coder.load_checkpoint(tmp_path / "plain.pth")
    expected = list(other.matcher.parameters())
    for tower in (coder.matcher, coder.keys.matcher.module):
        assert all(torch.equal(p, q) for p, q in zip(tower.parameters(), expected, strict=True))
    assert coder.keys.filled == 0 and coder.keys.steps_taken == 0


def test_a_fresh_run_starts_with_empty_dictionaries(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    coder = make_coder(monkeypatch, dictionary={"size": 4})
    coder(batch_of([0, 1]))
    coder.after_step()
    coder.before_training(SimpleNamespace(state=SimpleNamespace(epoch=0, step=3)))
    assert coder.keys.filled == 0.5
    coder._stored_concepts = True
    coder.before_training(SimpleNamespace(state=SimpleNamespace(epoch=0, step=0)))
    assert coder.keys.filled == 0 and coder.keys.steps_taken == 0
    assert "the concepts are the checkpoint's" in caplog.text


def test_a_network_with_momentum_towers_of_its_own(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(Matcher, "momentum_twin", lambda self: self)
    make_coder(monkeypatch)
    assert caplog.text.count("dictionary.momentum and ramp are of the concepts alone") == 1


def test_a_matcher_without_single_vectors_is_refused(monkeypatch) -> None:
    from methods.coder_stubs import Table

    monkeypatch.setattr(Table, "encode_captions", lambda self, captions: Encoded(regions=torch.zeros(1, 2, 3)))
    with pytest.raises(ItmError, match=r"itm_coder needs a matcher with one vector.*itm_table has none"):
        make_coder(monkeypatch)


def test_a_runner_that_tells_of_no_step_is_refused(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 2}, concept=False)
    batches = [batch_of([0, 1], iters=step) for step in range(51)]
    for batch in batches[:-1]:
        coder(batch)
    with pytest.raises(ItmError, match=r"told of none of 50 steps.*set run.runner: itm_runner"):
        coder(batches[-1])
