"""SGRAF: similarity graph reasoning (SGR) and attention filtration (SAF), two models (Diao et al., AAAI 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import unknown_name
from lavis_itm_plugins.scoring.dbl import SMOOTH, linear, local_alignments
from lavis_itm_plugins.scoring.local import RoundedLinear, local_similarities
from lavis_itm_plugins.scoring.pooling_attention import RunningNorm, SelfAttention
from lavis_itm_plugins.scoring.recomputed import recomputed_scores
from lavis_itm_plugins.scoring.sets import Sets, at_once, half_precision, l2_normalized, threads
from lavis_itm_plugins.scoring.tiles import Inputs, Tile, scores_of_tiles

MODULES = ("SAF", "SGR")
# of a block of nodes, which SGR's steps read and write many times, for each thread of a CPU
_NODE_NUMBERS = 2**19


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased variance (c,) of the weights of each caption."""

    mean: Tensor
    variance: Tensor


class SGRAFScorer(nn.Module):
    """score = sigmoid( w . z + b ), z from the similarity vectors of all words and of the whole pair.

    z_t compares word t with its context (as in `DBLScorer`), z_0 the whole caption with the whole image, each one
    vector by `SelfAttention`. `module` "SAF" weighs and adds them, "SGR" reasons over them as a graph in `steps` steps
    and takes z_0. State-dict keys are those of github.com/Paranioar/SGRAF. `regions` fixes the places of an image's
    regions, each with batch statistics of its own.

    The backward pass computes again what it needs, and nothing is kept, unless `checkpoint` is False. While SAF is
    trained it must be True for that: batch statistics give every pair a gradient, so that all would be computed again.
    """

    def __init__(
        self,
        embed_dim: int,
        sim_dim: int,
        *,
        module: str = "SAF",
        steps: int = 3,
        regions: int = 36,
        dropout: float = 0.4,
        smooth: float = SMOOTH,
        checkpoint: bool | None = None,
    ) -> None:
        super().__init__()
        if module not in MODULES:
            raise unknown_name("module", module, MODULES)
        self.smooth, self.checkpoint = smooth, checkpoint
        self.v_global_w = SelfAttention(embed_dim, dropout, regions=regions)
        self.t_global_w = SelfAttention(embed_dim, dropout)
        self.sim_tranloc_w, self.sim_tranglo_w = linear(embed_dim, sim_dim), linear(embed_dim, sim_dim)
        self.sim_eval_w = linear(sim_dim, 1)
        if module == "SAF":
            self.SAF_module = AttentionFiltration(sim_dim)
        else:
            self.SGR_module = nn.ModuleList(GraphReasoning(sim_dim) for _ in range(steps))

    def forward(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None = None) -> Tensor:
        """Scores (I, C) in (0, 1) of regions (I, R, D) and words (C, T, D); arguments as `scan_scores`.

        Under autocast contexts, their differences, SGR's nodes and edges, and products with matrices are in its type;
        affinities, lengths, softmax, SAF's gates and the scores in float32.
        """
        half = half_precision(images)
        with torch.autocast(images.device.type, enabled=False):
            sets = Sets.checked(images, captions, lengths, regions)
            wholes = self.v_global_w(sets.images, sets.image_mask, half), self._whole_captions(sets, half)
            inputs = Inputs(sets, wholes, half)
            if self.training and hasattr(self, "SAF_module"):
                return self._filtered_scores(inputs)
            if self.checkpoint is not False and torch.is_grad_enabled():
                return recomputed_scores(inputs, self, _names_in_tiles(self))
            return scores_of_tiles(inputs, self.tile_scores)

    def tile_scores(self, tile: Tile, seen: list[tuple[Tensor, Statistics]] | None = None) -> Tensor:
        """Scores (S, Q) of a tile; SAF's batch statistics in training are added to `seen`."""
        similar, statistics = self._similarities(tile)
        if seen is not None and statistics is not None:
            seen.append((tile.columns, statistics))
        logits: Tensor = self.sim_eval_w(similar)
        return logits.squeeze(-1).sigmoid()

    def _whole_captions(self, sets: Sets, half: torch.dtype | None) -> Tensor:
        """One vector (C, D) of each caption."""
        groups = list(sets.caption_groups(1))
        if not groups:
            return sets.captions[:, 0]
        vectors = torch.cat([self.t_global_w(words, half=half) for _, words in groups])
        return vectors[torch.cat([columns for columns, _ in groups]).argsort()]

    def _filtered_scores(self, inputs: Inputs) -> Tensor:
        """SAF's scores in training; a caption's batch statistics are those of all images."""
        seen: list[tuple[Tensor, Statistics]] = []
        scores = scores_of_tiles(
            inputs, partial(self.tile_scores, seen=seen), checkpoint=bool(self.checkpoint), all_images=True
        )
        if seen:
            self.SAF_module.update(_in_order(seen))
        return scores

    def _similarities(self, tile: Tile) -> tuple[Tensor, Statistics | None]:
        """One vector (S, Q, K) for each image and caption."""
        (images, captions), comparison = tile.wholes, self.sim_tranglo_w
        ones = images.new_ones(len(images), 1, captions.shape[1])
        whole = local_similarities(ones, images.unsqueeze(1), captions, comparison.weight, comparison.bias, tile.half)
        blocks = local_alignments(tile, self.sim_tranloc_w, self.smooth)
        if hasattr(self, "SGR_module"):
            steps = [
                partial(step, maps=step.maps(tile.half)) for step in cast("Iterable[GraphReasoning]", self.SGR_module)
            ]
            kind = tile.half or whole.dtype
            parts = [_reasoned(whole[rows].to(kind), local.to(kind), steps) for rows, local in blocks]
            return torch.cat(parts).to(whole.dtype), None
        if self.training:
            filtered: tuple[Tensor, Statistics] = self.SAF_module(
                _nodes(whole, torch.cat([local for _, local in blocks]))
            )
            return filtered
        return torch.cat([self.SAF_module(_nodes(whole[rows], local))[0] for rows, local in blocks]), None


def _reasoned(whole: Tensor, local: Tensor, steps: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """SGR's first node (S, Q, K) after all steps, in blocks of images whose nodes stay in the cache."""
    *inner, last = steps
    size, parts = max(1, at_once(_NODE_NUMBERS * threads(), local.device) // max(1, local[0:1].numel())), []
    for start in range(0, len(local), size):
        nodes = _nodes(whole[start : start + size], local[start : start + size])
        for step in inner:
            nodes = step(nodes, nodes)
        # only the first node is read; copied, for a product with a view may copy the matrix once for each pair
        parts.append(last(nodes, nodes[:, :, :1].contiguous()).squeeze(2))
    return torch.cat(parts)


def _nodes(whole: Tensor, local: Tensor) -> Tensor:
    """Nodes (S, Q, 1 + n, K): the whole pair's (S, Q, K), then those of the words (S, n, Q, K)."""
    return torch.cat([whole.unsqueeze(2), local.transpose(1, 2)], dim=2)


def _names_in_tiles(scorer: SGRAFScorer) -> list[str]:
    """All parameters but those of the vectors of whole images and captions."""
    whole = ("v_global_w.", "t_global_w.")
    return [name for name, _ in scorer.named_parameters() if not name.startswith(whole)]


def _in_order(seen: list[tuple[Tensor, Statistics]]) -> Statistics:
    order = torch.cat([columns for columns, _ in seen]).argsort()
    mean, variance = (torch.cat([getattr(part, name) for _, part in seen]) for name in ("mean", "variance"))
    return Statistics(mean[order], variance[order])


class AttentionFiltration(nn.Module):
    """z = l2( sum_k u_k x_k ), u = sigmoid(BN(w . x + b)) over its sum; equations 10-11.

    In training each caption has batch statistics of its own: over all images and its own nodes, as in the official
    loop over captions, which moves the running ones once for each caption in turn.
    """

    def __init__(self, sim_dim: int) -> None:
        super().__init__()
        self.attn_sim_w, self.bn = linear(sim_dim, 1), RunningNorm(1)

    def forward(self, nodes: Tensor) -> tuple[Tensor, Statistics | None]:
        """Nodes (I, c, N, K) -> (I, c, K), and in training the statistics of each caption."""
        logits, norm, seen = self.attn_sim_w(nodes).squeeze(-1), self.bn, None
        if self.training:
            mean, variance = logits.mean(dim=(0, 2)), logits.var(dim=(0, 2), unbiased=False)
            count = logits.shape[0] * logits.shape[2]
            seen = Statistics(mean.detach(), variance.detach() * (count / (count - 1)))
            logits = (logits - mean[:, None]) * (variance[:, None] + norm.eps).rsqrt() * norm.weight + norm.bias
        else:
            logits = (logits - norm.running_mean) * (norm.running_var + norm.eps).rsqrt() * norm.weight + norm.bias
        gates = logits.sigmoid()
        gates = gates / (gates.sum(dim=2, keepdim=True) + 1e-8)
        return l2_normalized((gates.unsqueeze(2) @ nodes).squeeze(2)), seen

    @torch.no_grad()
    def update(self, seen: Statistics) -> None:
        """Move the running statistics as one step for each caption (C,) in order would."""
        norm, number = self.bn, len(seen.mean)
        left = (1 - norm.momentum) ** torch.arange(number, -1, -1, dtype=seen.mean.dtype, device=seen.mean.device)
        steps = norm.momentum * left[1:]
        norm.running_mean.mul_(left[0]).add_((steps * seen.mean).sum())
        norm.running_var.mul_(left[0]).add_((steps * seen.variance).sum())
        norm.num_batches_tracked += number


class GraphReasoning(nn.Module):
    """x <- relu( Ws (e x) + bs ), e = softmax_j( (Wq x_i + bq) . (Wk x_j + bk) ); equations 7-9.

    Terms that are equal for all j leave the softmax as it is, so the logits are x_i M x_j + u . x_j with
    M = Wq^T Wk and u = Wk^T bq: one product with a matrix instead of two.
    """

    def __init__(self, sim_dim: int) -> None:
        super().__init__()
        self.graph_query_w, self.graph_key_w = linear(sim_dim, sim_dim), linear(sim_dim, sim_dim)
        self.sim_graph_w = linear(sim_dim, sim_dim)

    def maps(self, half: torch.dtype | None) -> tuple[RoundedLinear, RoundedLinear]:
        """From x to M^T x + u, and from e x to Ws (e x) + bs."""
        query, key, value = self.graph_query_w, self.graph_key_w, self.sim_graph_w
        # the key's bias moves all logits of a reader alike; DDP wants its gradient, which is 0
        shift = query.bias @ key.weight + 0 * key.bias.sum()
        return RoundedLinear(key.weight.t() @ query.weight, shift, half), RoundedLinear(value.weight, value.bias, half)

    def forward(self, nodes: Tensor, readers: Tensor, maps: tuple[RoundedLinear, RoundedLinear]) -> Tensor:
        """New vectors (I, c, r, K) of the `readers` among nodes (I, c, N, K)."""
        turned, mapped = maps
        edges = _short_softmax(turned(readers) @ nodes.transpose(2, 3))
        return mapped(edges @ nodes).relu_()


def _short_softmax(logits: Tensor) -> Tensor:
    """A softmax over the last axis; torch's own takes five times as long on a CPU where that is short."""
    if logits.device.type != "cpu":
        return logits.softmax(dim=-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    powers = (wide - wide.detach().amax(dim=-1, keepdim=True)).exp()
    return (powers / powers.sum(dim=-1, keepdim=True)).to(logits.dtype)
