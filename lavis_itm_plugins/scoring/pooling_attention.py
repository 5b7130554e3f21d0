"""SGRAF's self-attention: one vector of a set of regions or words, each weighed against their mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.scoring.dbl import linear
from lavis_itm_plugins.scoring.sets import l2_normalized


class SelfAttention(nn.Module):
    """out = l2( sum_r p_r x_r ),  p = softmax_r( w . (tanh(N(Wl x_r)) * tanh(N'(Wg mean x))) ).

    With `regions` (images) N is a batch normalisation over the region's place and N' one over the features, so the
    number of regions is fixed; without (captions) both are left out. Names as in github.com/Paranioar/SGRAF.
    """

    def __init__(self, dim: int, dropout: float, *, regions: int | None = None) -> None:
        super().__init__()
        norms = (PlaceNorm(regions), nn.BatchNorm1d(dim)) if regions else ()
        rest = (nn.Tanh(), nn.Dropout(dropout))
        self.embedding_local = nn.Sequential(linear(dim, dim), *norms[:1], *rest)
        self.embedding_global = nn.Sequential(linear(dim, dim), *norms[1:], *rest)
        self.embedding_common = nn.Sequential(linear(dim, 1))

    def forward(self, items: Tensor, mask: Tensor | None = None, half: torch.dtype | None = None) -> Tensor:
        """Unit vectors (n, D) of sets (n, k, D) with zeros for padding and their mask (n, k).

        With `half` the layers of D x D work in that type.
        """
        count = items.shape[1] if mask is None else mask.sum(dim=1, keepdim=True).to(items.dtype)
        local, whole = items, items.sum(dim=1) / count
        for layer in self.embedding_local:
            local = layer(local, mask) if isinstance(layer, PlaceNorm) else _applied(layer, local, half)
        for layer in self.embedding_global:
            whole = _applied(layer, whole, half)
        common = local * whole.unsqueeze(1)
        logits = self.embedding_common(common).squeeze(-1)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return l2_normalized((logits.softmax(dim=1).unsqueeze(-1) * items).sum(dim=1))


def _applied(layer: nn.Module, items: Tensor, half: torch.dtype | None) -> Tensor:
    """The layer's result in the items' type; with `half` a linear layer works in that."""
    result: Tensor
    if half is None or not isinstance(layer, nn.Linear):
        result = layer(items)
        return result
    # without autocast's copy of the weight, in which the gradients of all calls would add up in that type
    with torch.autocast(items.device.type, half, cache_enabled=False):
        result = layer(items)
    return result.to(items.dtype)


class RunningNorm(nn.BatchNorm1d):
    """A batch normalisation that always has its running statistics, weight and bias."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float


class PlaceNorm(RunningNorm):
    """Batch normalisation of each place in a set, (n, k, D) over n and D; only real items count."""

    def forward(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised items; raises ItmError when sets have more places than this was made for."""
        places = items.shape[1]
        if places > self.num_features:
            raise ItmError(
                f"images have {places} regions, this network was made for {self.num_features}; use data with as many"
            )
        if mask is None and places == self.num_features:
            return super().forward(items)
        weight, bias = self.weight[:places, None], self.bias[:places, None]
        mean, variance = self._batch(items, mask) if self.training else (self.running_mean, self.running_var)
        return (items - mean[:places, None]) * (variance[:places, None] + self.eps).rsqrt() * weight + bias

    def _batch(self, items: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (k,) over real items, which also move the running ones where there are any."""
        places, dim = items.shape[1:]
        real = torch.ones_like(items[..., 0]) if mask is None else mask.to(items.dtype)
        count = real.sum(dim=0)
        mean = (items.mean(dim=2) * real).sum(dim=0) / count.clamp(min=1)
        variance = ((items - mean[:, None]).square().mean(dim=2) * real).sum(dim=0) / count.clamp(min=1)
        with torch.no_grad():
            step = self.momentum * (count > 0).to(items.dtype)
            numbers = count * dim
            unbiased = variance * numbers / (numbers - 1).clamp(min=1)
            self.running_mean[:places] += step * (mean - self.running_mean[:places])
            self.running_var[:places] += step * (unbiased - self.running_var[:places])
            self.num_batches_tracked += 1
        return mean, variance
