"""On two ranks LAVIS's networks compute what one process does, where LAVIS's own scores are wrong."""

from __future__ import annotations

import pytest
import torch
from scripts import run_script


@pytest.fixture(scope="module")
def ranks(words):
    """What one process, and two, computed, by name: losses, gradients, buffers, scores."""
    folder = words.parent
    run_script("matchers/lavis_ranks.py", folder)
    return [torch.load(folder / f"ranks_{size}.pt") for size in (1, 2)]


def test_two_ranks_equal_one(ranks):
    """Contrast, queues, momentum towers and re-ranking, in float64."""
    one, two = ranks
    assert one.keys() == two.keys()
    for name, value in one.items():
        if ".scores.lavis" in name:
            continue
        # scores leave the network in single precision
        single = "reranked" in name or ".scores." in name
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if single else {"rtol": 1e-6, "atol": 1e-10}
        torch.testing.assert_close(two[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("network", ["clip", "blip", "albef"])
def test_on_two_ranks_lavis_own_scores_are_wrong_by_default_and_ours_are_not(network, ranks):
    """From the very loader that LAVIS's runner makes: a rank's share of the pictures stands in for all of them."""
    (ours, default, whole), (ours_on_two, default_on_two, whole_on_two) = (
        [found[f"{network}.scores.{who}"] for who in ("ours", "lavis_default", "lavis_whole")] for found in ranks
    )
    seen = default > -50
    torch.testing.assert_close(ours[seen], default[seen], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours_on_two, ours, rtol=0, atol=1e-5)
    assert torch.equal(whole, default)
    if network == "clip":
        assert (len(default), len(default_on_two)) == (5, 3)
        torch.testing.assert_close(whole_on_two, whole, rtol=0, atol=1e-5)
        return
    # with use_dist_eval_sampler: false each rank embeds everything; the ranks' -100 of pairs not seen are summed
    torch.testing.assert_close(whole_on_two + 100, whole, rtol=0, atol=1e-4)
    # by default two of the five pictures get no score at all, and the others those of another
    assert (default_on_two > -150).any(dim=1).tolist() == [True, True, True, False, False]
    assert not torch.allclose(default_on_two[1] + 100, default[1], rtol=0, atol=1e-4)
