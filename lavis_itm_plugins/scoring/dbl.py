"""The network that DBL's release calls SGRAF: local alignments averaged (github.com/Paranioar/DBL, MSS/model.py)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lavis_itm_plugins.scoring.attention import affinities, attention_weights, context_norms
from lavis_itm_plugins.scoring.local import similarity_blocks
from lavis_itm_plugins.scoring.recomputed import recomputed_scores
from lavis_itm_plugins.scoring.sets import Sets, half_precision, l2_normalized
from lavis_itm_plugins.scoring.tiles import Inputs, Tile, scores_of_tiles

SMOOTH = 9.0


class DBLScorer(nn.Module):
    """score = tanh( w . l2(mean_t z_t) + b ), z_t = l2( W (c_t - e_t)^2 + b ), c_t the unit context of word t.

    Contexts are SCAN's t2i ones (`clipped_l2norm`, 9). `normalize`: False leaves the l2 of the mean out (the release's
    `no_simnorm`). The backward pass computes again what it needs, and nothing is kept, unless `checkpoint` is False.
    State-dict keys are the release's: sim_tran_w, sim_eval_w.
    """

    def __init__(
        self,
        embed_dim: int,
        sim_dim: int,
        *,
        normalize: bool = True,
        smooth: float = SMOOTH,
        checkpoint: bool | None = None,
    ) -> None:
        super().__init__()
        self.normalize, self.smooth, self.checkpoint = normalize, smooth, checkpoint
        self.sim_tran_w, self.sim_eval_w = linear(embed_dim, sim_dim), linear(sim_dim, 1)

    def forward(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None = None) -> Tensor:
        """Scores (I, C) in (-1, 1) of regions (I, R, D) and words (C, T, D); arguments as `scan_scores`.

        Under autocast contexts, their differences and the products with sim_tran_w are in its type; affinities,
        lengths, softmax and the scores in float32.
        """
        half = half_precision(images)
        with torch.autocast(images.device.type, enabled=False):
            inputs = Inputs(Sets.checked(images, captions, lengths, regions), half=half)
            if self.checkpoint is not False and torch.is_grad_enabled():
                return recomputed_scores(inputs, self, [name for name, _ in self.named_parameters()])
            return scores_of_tiles(inputs, self.tile_scores)

    def tile_scores(self, tile: Tile) -> Tensor:
        """Scores (S, Q) of a tile."""
        mean = torch.cat([local.mean(dim=1) for _, local in local_alignments(tile, self.sim_tran_w, self.smooth)])
        logits: Tensor = self.sim_eval_w(l2_normalized(mean) if self.normalize else mean)
        return logits.squeeze(-1).tanh()


def local_alignments(tile: Tile, comparison: nn.Linear, smooth: float) -> Iterator[tuple[slice, Tensor]]:
    """Unit similarity vectors (s, n, Q, K) of the words of the tile's captions with their unit contexts.

    Of a few images at a time, and which these are; as `similarity_blocks`.
    """
    sources, queries = tile.sources, tile.queries
    weights = attention_weights(affinities(sources, queries), sources, queries, smooth=smooth)
    weights = weights / (context_norms(weights, sources) + 1e-8).unsqueeze(1)
    items = queries.vectors.flatten(1, 2)
    given = weights.flatten(2), sources.vectors, items, comparison.weight, comparison.bias
    for images, similar in similarity_blocks(*given, tile.half):
        yield images, similar.view(len(similar), *weights.shape[2:], -1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, as the field's released code starts."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
