"""VSRN's image encoder: regions related to each other by graph convolutions, then read as a sequence.

Li et al., Visual Semantic Reasoning for Image-Text Matching, ICCV 2019 (github.com/KunpengLi1994/VSRN); names of
weights as there. Batch statistics see real regions only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence

FORMS = ("f30k", "coco")


class RegionGraph(nn.Module):
    """Regions plus what they gather from each other: v + BN(W (R g(v))), R = theta(v)^T phi(v) / N.

    The identity at the start of training.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv1d(dim, dim, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim))
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, regions: Tensor, real: Tensor) -> Tensor:
        """Regions (n, R, D) and their mask (n, R) -> (n, R, D), zero where not real."""
        weights = real.unsqueeze(-1).to(regions.dtype)
        columns = regions.transpose(1, 2)
        theta, phi, values = (layer(columns).transpose(1, 2) * weights for layer in (self.theta, self.phi, self.g))
        relations = theta @ phi.transpose(1, 2) / weights.sum(dim=1, keepdim=True)
        mixed = self.W[0]((relations @ values).transpose(1, 2)).transpose(1, 2)
        return (regions + normed_real(self.W[1], mixed, real)) * weights


class RegionReasoning(nn.Module):
    """Four graph convolutions, then a GRU over the regions in their order: its last state is the image.

    `form`: "coco" norms the regions first, "f30k" ends with a batch normalisation, as the official code for each data
    set. Its l2 norm of regions runs over the regions for each feature; with one region only that would leave signs, so
    that norm runs over the features there.
    """

    def __init__(self, dim: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.Rs_GCN_1, self.Rs_GCN_2, self.Rs_GCN_3, self.Rs_GCN_4 = (RegionGraph(dim) for _ in range(4))
        self.img_rnn = nn.GRU(dim, dim, batch_first=True)
        self.bn = nn.BatchNorm1d(dim) if form == "f30k" else None

    def forward(self, regions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Regions (n, R, D) and mask (n, R) -> images (n, D), not normed, regions (n, R, D) and their mask.

        Real regions come first in what is given back, in their order.
        """
        regions, real = _compacted(regions, mask)
        if self.form == "coco":
            regions = norm_over_regions(regions)
        for graph in (self.Rs_GCN_1, self.Rs_GCN_2, self.Rs_GCN_3, self.Rs_GCN_4):
            regions = graph(regions, real)
        regions = norm_over_regions(regions)
        packed = pack_padded_sequence(regions, real.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
        images = self.img_rnn(packed)[1][0]
        return (images if self.bn is None else self.bn(images)), regions, real


def norm_over_regions(regions: Tensor) -> Tensor:
    """Each feature at length 1 over the regions (n, R, D); each region over its features where there is only one."""
    axis = 1 if regions.shape[1] > 1 else 2
    return normalize(regions, dim=axis, eps=1e-8)


def normed_real(norm: nn.BatchNorm1d, items: Tensor, real: Tensor) -> Tensor:
    """Batch normalisation of the real items of (n, R, D); the others are 0."""
    result = torch.zeros_like(items)
    result[real] = norm(items[real]).to(result.dtype)
    return result


def _compacted(regions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Real regions first, zeros behind them, and the mask of that."""
    if mask is None:
        return regions, torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    real = mask.gather(1, order)
    ordered = regions.gather(1, order.unsqueeze(-1).expand_as(regions))
    return ordered.masked_fill(~real.unsqueeze(-1), 0.0), real
