"""Random tiles with padding that must not matter, the definition of attention for a single pair, random networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import normalize

from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer

DIM = 6


@dataclass(frozen=True)
class Tile:
    """Images (I, R, D), captions (C, T, D), `lengths` (C,), `regions` (I,); behind them lies `padding`."""

    images: Tensor
    captions: Tensor
    lengths: Tensor
    regions: Tensor

    def pair(self, image: int, caption: int) -> tuple[Tensor, Tensor]:
        """Real regions (r, D) and words (n, D) of one pair."""
        return self.images[image, : self.regions[image]], self.captions[caption, : self.lengths[caption]]


def make_tile(images: list[Tensor], captions: list[Tensor], padding: float, more: int = 0) -> Tile:
    def padded(sets: list[Tensor]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(items) for items in sets])
        result = torch.full((len(sets), int(counts.max()) + more, DIM), padding, dtype=torch.float64)
        for row, items in zip(result, sets, strict=True):
            row[: len(items)] = items
        return result, counts

    (image_tensor, regions), (caption_tensor, lengths) = padded(images), padded(captions)
    return Tile(image_tensor, caption_tensor, lengths, regions)


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    """One to four images and captions of one to five items, some of them equal or zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def sets(sizes: list[int]) -> list[Tensor]:
        made = [normalize(torch.randn(size, DIM, generator=generator, dtype=torch.float64), dim=1) for size in sizes]
        if draw(st.booleans()):
            made[0] = made[0][:1].repeat(len(made[0]), 1)
        if draw(st.integers(0, 5)) == 0:
            made[-1] = made[-1] * 0
        return made

    sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
    regions = draw(sizes)
    padding = draw(st.sampled_from([0.0, 7.0, float("nan"), float("inf")]))
    return make_tile(sets(regions), sets(draw(sizes)), padding, draw(st.integers(0, 2)))


def pair_attention(queries: Tensor, sources: Tensor, feature_norm: str, smooth: float) -> tuple[Tensor, Tensor]:
    """Weights (m, n) of queries (m, D) over sources (n, D), and their contexts (m, D), by the definition."""
    affinity = queries @ sources.t()
    if feature_norm.startswith("clipped"):
        affinity = torch.where(affinity > 0, affinity, 0.1 * affinity)
    if feature_norm.endswith("l2norm"):
        affinity = affinity / (affinity.square().sum(dim=0).sqrt() + 1e-8)
    elif feature_norm == "softmax":
        affinity = affinity.softmax(dim=0)
    weights = (affinity * smooth).softmax(dim=1)
    return weights, weights @ sources


def pair_cosines(queries: Tensor, contexts: Tensor) -> Tensor:
    lengths = queries.norm(dim=1) * contexts.norm(dim=1)
    return (queries * contexts).sum(dim=1) / lengths.clamp(min=1e-8)


def scorer_of(kind: str, *, regions: int = 7, **more) -> nn.Module:
    """A network in evaluation mode whose every weight and statistic is random."""
    torch.manual_seed(1)
    made = DBLScorer(DIM, 4, **more) if kind == "DBL" else SGRAFScorer(DIM, 4, module=kind, regions=regions, **more)
    for value in (*made.parameters(), *made.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value.data, 0.3, 1.0) if value.dim() == 1 else nn.init.normal_(value.data)
    return made.double().eval()
