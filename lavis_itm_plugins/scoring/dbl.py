"""The network that DBL's release calls SGRAF: local alignments averaged (github.com/Paranioar/DBL, MSS/model.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lavis_itm_plugins.scoring.attention import Queries, Sources, affinities, attention_weights, context_norms
from lavis_itm_plugins.scoring.local import local_similarities
from lavis_itm_plugins.scoring.sets import Sets, l2_normalized, score_in_tiles

SMOOTH = 9.0


class DBLScorer(nn.Module):
    """score = tanh( w . l2(mean_t z_t) + b ), z_t = l2( W (c_t - e_t)^2 + b ), c_t the unit context of word t.

    Contexts are SCAN's t2i ones (`clipped_l2norm`, 9). `normalize`: False leaves the l2 of the mean out (the release's
    `no_simnorm`). State-dict keys are the release's: sim_tran_w, sim_eval_w.
    """

    def __init__(
        self, embed_dim: int, sim_dim: int, *, normalize: bool = True, smooth: float = SMOOTH, checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.normalize, self.smooth, self.checkpoint = normalize, smooth, checkpoint
        self.sim_tran_w, self.sim_eval_w = linear(embed_dim, sim_dim), linear(sim_dim, 1)

    def forward(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None = None) -> Tensor:
        """Scores (I, C) in (-1, 1) of regions (I, R, D) and words (C, T, D); arguments as `scan_scores`."""

        def score(block: Sources, _columns: Tensor, words: Tensor) -> Tensor:
            mean = local_alignments(block, words, self.sim_tran_w, self.smooth).mean(dim=2)
            logits: Tensor = self.sim_eval_w(l2_normalized(mean) if self.normalize else mean)
            return logits.squeeze(-1).tanh()

        with torch.autocast(images.device.type, enabled=False):
            sets = Sets.checked(images, captions, lengths, regions)
            return score_in_tiles(sets, lambda rows: Sources.of(*sets.block(rows)), score, checkpoint=self.checkpoint)


def local_alignments(block: Sources, words: Tensor, comparison: nn.Linear, smooth: float) -> Tensor:
    """Unit similarity vectors (I, c, n, K) of the words (c, n, D) with their unit contexts in each image."""
    n_captions, n_words, dim = words.shape
    queries = Queries.of(words)
    weights = attention_weights(affinities(block, queries), block, queries, smooth=smooth)
    weights = weights / (context_norms(weights, block) + 1e-8).unsqueeze(1)
    # (I, R, n, c) -> (I, c * n, R)
    weights = weights.permute(0, 3, 2, 1).reshape(len(weights), n_captions * n_words, -1)
    flat = words.reshape(-1, dim)
    similar = local_similarities(weights, block.vectors, flat, comparison.weight, comparison.bias)
    return similar.view(len(weights), n_captions, n_words, -1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, as the field's released code starts."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
