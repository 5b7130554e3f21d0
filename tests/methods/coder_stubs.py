"""A matcher whose vectors are given, and an itm_coder around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch.nn.functional import normalize

from lavis_itm_plugins.concepts import Concepts
from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.methods import coder
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.methods.coder_config import CoderConfig

OFF = {"dcl": {"beta": 0.0, "keys": "online"}, "dictionary": {"size": 0}, "concept": False, "labels": False}


@dataclass(frozen=True)
class TableConfig:
    items: int = 6
    dim: int = 8
    base_loss: BaseLoss = BaseLoss()


class Table(Matcher):
    """Item n is row n of a table; `samples["image"]` holds rows, a caption is the number of a row."""

    arch = "itm_table"
    config_class = TableConfig

    def build(self) -> None:
        size = (self.config.items, self.config.dim)
        self.images, self.captions = (torch.nn.Parameter(torch.randn(size)) for _ in range(2))

    def encode_images(self, samples: Any) -> Encoded:
        return Encoded(pooled=normalize(self.images[samples["image"]], dim=1))

    def encode_captions(self, captions: Any) -> Encoded:
        rows = [int(caption) if caption.isdigit() else 0 for caption in captions]
        return Encoded(pooled=normalize(self.captions[rows], dim=1))


def make_coder(monkeypatch: Any, concepts: int = 9, seed: int = 0, **sections: Any) -> coder.Coder:
    """An itm_coder in float64 around a `Table`, over a ring of concepts."""
    ring = nx.DiGraph(source="cooccurrence")
    for node in range(concepts):
        ring.add_edge(f"c{node}", f"c{(node + 1) % concepts}", weight=0.25, relations="")
    monkeypatch.setattr(coder, "prepare_concepts", lambda _config: Concepts(ring))
    table = {key: sections.pop(key) for key in ("items", "dim", "base_loss") if key in sections}
    torch.manual_seed(seed)
    matcher = Table(parse(TableConfig, table, "table"))
    config = parse(CoderConfig, {"base_loss": table.get("base_loss", {}), **sections}, "model")
    return coder.Coder(config, matcher, {}).double()


def batch_of(rows: list[int], image_ids: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """A batch of pairs of a `Table`'s rows."""
    ids = torch.tensor(rows if image_ids is None else image_ids)
    return {
        "image": torch.tensor(rows),
        "text_input": [str(row) for row in rows],
        "image_id": ids,
        "index": torch.tensor(rows),
        "epoch": 1,
        **more,
    }
