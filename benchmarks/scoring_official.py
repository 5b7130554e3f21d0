"""The official form of cross-attention scores: one caption with all images at a time, contexts of all pairs as vectors.

SCAN, BFAN, SGRAF and DBL's release score like this (github.com/kuanghuei/SCAN, sunnychencool/AOQ, Paranioar/SGRAF and
Paranioar/DBL); written out here over the weights of our modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer

Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def l2(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-8)


def attend(query: Tensor, context: Tensor, smooth: float, focal: str = "") -> Tensor:
    """Contexts (I, q, D) of queries (I, q, D) over (I, s, D), with the official order of axes: D before q in memory."""
    affinity = leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1)
    weights = torch.softmax(l2(affinity).transpose(1, 2).contiguous() * smooth, dim=2)
    if focal == "equal":
        weights = weights * (weights * weights.shape[2] - weights.sum(dim=2, keepdim=True) > 0)
        weights = weights / weights.sum(dim=2, keepdim=True)
    elif focal == "prob":
        excess = (weights.unsqueeze(3) - weights.unsqueeze(2)) * weights.unsqueeze(2).sqrt()
        weights = weights * (excess.sum(dim=3) > 0)
        weights = weights / weights.sum(dim=2, keepdim=True)
    return torch.bmm(context.transpose(1, 2), weights.transpose(1, 2).contiguous()).transpose(1, 2)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths = torch.norm(one, 2, 2) * torch.norm(other, 2, 2)
    return (one * other).sum(dim=2) / lengths.clamp(min=1e-8)


def per_caption(score: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """The official shape: (I, R, D) images and one caption (I, n, D) at a time."""

    def loop(images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        columns = []
        for caption, length in zip(captions, lengths.tolist(), strict=True):
            columns.append(score(images, caption[None, :length].repeat(len(images), 1, 1)))
        return torch.stack(columns, dim=1)

    return loop


def scan_t2i(images: Tensor, caption: Tensor) -> Tensor:
    return cosine(caption, attend(caption, images, 9.0)).mean(dim=1)


def scan_i2t(images: Tensor, caption: Tensor) -> Tensor:
    return cosine(images, attend(images, caption, 4.0)).mean(dim=1)


def bfan(focal: str) -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, caption: Tensor) -> Tensor:
        words = cosine(caption, attend(caption, images, 20.0, focal)).mean(dim=1)
        return words + cosine(images, attend(images, caption, 20.0, focal)).mean(dim=1)

    return score


def dbl(scorer: DBLScorer) -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, caption: Tensor) -> Tensor:
        local = l2(scorer.sim_tran_w((l2(attend(caption, images, 9.0)) - caption).pow(2)))
        return scorer.sim_eval_w(l2(local.mean(dim=1))).squeeze(1).tanh()

    return score


def sgraf(scorer: SGRAFScorer) -> Score:
    def reasoned(nodes: Tensor) -> Tensor:
        for step in scorer.SGR_module:
            edges = torch.softmax(step.graph_query_w(nodes) @ step.graph_key_w(nodes).transpose(1, 2), dim=-1)
            nodes = step.sim_graph_w(edges @ nodes).relu()
        return nodes[:, 0]

    def filtered(nodes: Tensor) -> Tensor:
        module = scorer.SAF_module
        gates = module.bn(module.attn_sim_w(nodes).transpose(1, 2)).sigmoid()
        return l2((gates / (gates.sum(dim=2, keepdim=True) + 1e-8) @ nodes).squeeze(1))

    def loop(images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        whole_images = scorer.v_global_w(images)

        def score(images: Tensor, caption: Tensor) -> Tensor:
            whole = scorer.t_global_w(caption[:1])
            local = l2(scorer.sim_tranloc_w((l2(attend(caption, images, 9.0)) - caption).pow(2)))
            first = l2(scorer.sim_tranglo_w((whole_images - whole).pow(2)))
            nodes = torch.cat([first.unsqueeze(1), local], dim=1)
            similar = reasoned(nodes) if hasattr(scorer, "SGR_module") else filtered(nodes)
            return scorer.sim_eval_w(similar).squeeze(1).sigmoid()

        return per_caption(score)(images, captions, lengths)

    return loop
