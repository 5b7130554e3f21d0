"""SGRAF: similarity graph reasoning (SGR) and attention filtration (SAF), two models (Diao et al., AAAI 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis_itm_plugins.errors import unknown_name
from lavis_itm_plugins.scoring.attention import Sources
from lavis_itm_plugins.scoring.dbl import SMOOTH, linear, local_alignments
from lavis_itm_plugins.scoring.local import local_similarities
from lavis_itm_plugins.scoring.pooling_attention import RunningNorm, SelfAttention
from lavis_itm_plugins.scoring.sets import Sets, l2_normalized, score_in_tiles

MODULES = ("SAF", "SGR")


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased variance (c,) of the weights of each caption."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Block:
    """A block of images: their regions and one vector (I, D) of each."""

    sources: Sources
    vectors: Tensor


class SGRAFScorer(nn.Module):
    """score = sigmoid( w . z + b ), z from the similarity vectors of all words and of the whole pair.

    z_t compares word t with its context (as in `DBLScorer`), z_0 the whole caption with the whole image, each one
    vector by `SelfAttention`. `module` "SAF" weighs and adds them, "SGR" reasons over them as a graph in `steps` steps
    and takes z_0. State-dict keys are those of github.com/Paranioar/SGRAF. `regions` fixes the places of an image's
    regions, each with batch statistics of its own.
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
        checkpoint: bool = False,
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
        """Scores (I, C) in (0, 1) of regions (I, R, D) and words (C, T, D); arguments as `scan_scores`."""
        seen: list[tuple[Tensor, Statistics]] = []

        def score(block: _Block, columns: Tensor, words: Tensor) -> Tensor:
            similar, statistics = self._similarities(block, words)
            if statistics is not None:
                seen.append((columns, statistics))
            logits: Tensor = self.sim_eval_w(similar)
            return logits.squeeze(-1).sigmoid()

        with torch.autocast(images.device.type, enabled=False):
            sets = Sets.checked(images, captions, lengths, regions)
            whole = self.v_global_w(sets.images, sets.image_mask)
            scores = score_in_tiles(
                sets,
                lambda rows: _Block(Sources.of(*sets.block(rows)), whole[rows]),
                score,
                checkpoint=self.checkpoint,
                # a caption's batch statistics are those of all images
                all_images=self.training and hasattr(self, "SAF_module"),
            )
        if seen:
            self.SAF_module.update(_in_order(seen))
        return scores

    def _similarities(self, block: _Block, words: Tensor) -> tuple[Tensor, Statistics | None]:
        """One vector (I, c, K) for each image and caption, of captions (c, n, D) of equal length."""
        local = local_alignments(block.sources, words, self.sim_tranloc_w, self.smooth)
        captions, images, comparison = self.t_global_w(words), block.vectors.unsqueeze(1), self.sim_tranglo_w
        ones = images.new_ones(len(images), len(captions), 1)
        whole = local_similarities(ones, images, captions, comparison.weight, comparison.bias)
        nodes = torch.cat([whole.unsqueeze(2), local], dim=2)
        if hasattr(self, "SAF_module"):
            filtered: tuple[Tensor, Statistics | None] = self.SAF_module(nodes)
            return filtered
        *inner, last = self.SGR_module
        for step in inner:
            nodes = step(nodes)
        # only the first node is read
        return last(nodes, nodes[:, :, :1]).squeeze(2), None


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

    def forward(self, nodes: Tensor, readers: Tensor | None = None) -> Tensor:
        """New vectors (I, c, r, K) of the `readers` among nodes (I, c, N, K); of all of them when not given."""
        readers = nodes if readers is None else readers
        query, key = self.graph_query_w, self.graph_key_w
        # the key's bias moves all logits of a reader alike; DDP wants its gradient, which is 0
        shift = query.bias @ key.weight + 0 * key.bias.sum()
        # (M^T x_i + u) . x_j
        turned = readers @ (query.weight.t() @ key.weight) + shift
        edges = (turned @ nodes.transpose(2, 3)).softmax(dim=-1)
        gathered: Tensor = self.sim_graph_w(edges @ nodes)
        return gathered.relu()
