"""Small matchers over regions and words, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.encoders.vocabulary import SPECIAL, Vocabulary
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.matchers.bfan import BfanMatcher
from lavis_itm_plugins.matchers.scan import ScanMatcher
from lavis_itm_plugins.matchers.sgraf import SgrafMatcher
from lavis_itm_plugins.matchers.vsrn import VsrnMatcher

WORDS = [*SPECIAL, "a", "red", "green", "blue", "dog", "cat", "ball", "there"]
# sizes small, dropout off
SECTIONS: dict[str, tuple[type[Matcher], dict[str, Any]]] = {
    "scan_t2i": (ScanMatcher, {}),
    "scan_i2t": (ScanMatcher, {"direction": "i2t", "aggregate": "mean", "lambda_softmax": 4.0}),
    "bfan": (BfanMatcher, {}),
    "saf": (SgrafMatcher, {"module": "SAF", "sim_dim": 6, "dropout": 0.0}),
    "sgr": (SgrafMatcher, {"module": "SGR", "sim_dim": 6, "dropout": 0.0}),
    "dbl": (SgrafMatcher, {"module": "DBL", "sim_dim": 6}),
    "vsrn": (VsrnMatcher, {"captioning": {"weight": 1.0, "hidden": 5, "word_dim": 4, "dropout": 0.0}}),
}


def section_of(name: str, **more: Any) -> dict[str, Any]:
    """The `model` section without the network's name; on any data."""
    vsrn = {"bidirectional": False, "pooling": "last"}
    text = {"word_dim": 6, "hidden": 10, "merge": "mean", "dropout": 0.0, **(vsrn if name == "vsrn" else {})}
    sizes = {"embed_dim": 10, "text": text, "min_count": 1}
    return {**sizes, "image": {"projection": "linear"}, **SECTIONS[name][1], **more}


def make(name: str, *, dim: int = 8, regions: int = 4, words: Sequence[str] = WORDS, **more: Any) -> Matcher:
    """A network on features of this size, in training mode."""
    torch.manual_seed(0)
    kind = SECTIONS[name][0]
    section = section_of(name, **{"image": {"projection": "linear", "dim": dim}, **more})
    if kind is SgrafMatcher:
        section.setdefault("regions", regions)
    return kind(parse(kind.config_class, section, "model"), Vocabulary(words))


def batch_of(image_ids: list[int], *, dim: int = 8, regions: int = 4, **more: Any) -> dict[str, Any]:
    """Random features of one image each, and captions of different length."""
    forms = ("a red dog", "the green cat there", "a ball", "dog", "a blue cat and a red ball there")
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(len(image_ids), regions, dim, generator=generator),
        "text_input": [forms[n % len(forms)] for n in range(len(image_ids))],
        "image_id": torch.tensor(image_ids),
        "epoch": 0,
        **more,
    }
