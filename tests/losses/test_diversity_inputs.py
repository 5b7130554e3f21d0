"""Wrong embeddings, masks and options are named in one sentence; the signatures and their defaults are the contract."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights

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
