"""LAVIS's own losses on batches of any number of ranks: image-text matching, and contrast against momentum queues.

What blip_retrieval, albef_retrieval and blip2 compute in their `forward` (Li et al., ALBEF, NeurIPS 2021; BLIP, ICML
2022; BLIP-2, ICML 2023), written once, with what stops them repaired: a batch of one image, any queue size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lavis_itm_plugins.methods.chunks import recomputed

# a negative whose softmax weight underflows can still be drawn
_LEAST_WEIGHT = 1e-4


@dataclass(frozen=True)
class Keys:
    """Momentum vectors (B, d) of the batch of all ranks, which enter the queues after the step."""

    images: Tensor
    captions: Tensor
    image_ids: Tensor


def itm_loss(
    logits_of: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    image_states: Tensor,
    tokens: Mapping[str, Tensor],
    similarities: Tensor,
    image_ids: Tensor,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy of match or not: each pair, each caption with a drawn other image, each image with another caption.

    Args:
        logits_of: (image_states (m, P, w), tokens (m, T)) -> (m, 2).
        image_states: (n, P, w) of this rank; tokens: (n, T) tensors by name.
        similarities: (n, n) cosines over temperature, image by caption; the likelier a negative, the more often drawn.
        image_ids: (n,); items of the same image are never drawn. Without another image only the pairs count.
        chunk: so many pairs at a time pass through the head, and again in the backward pass; all at once when None.
    """
    same = image_ids[:, None] == image_ids[None, :]
    count, usable = len(image_ids), ~same.all(dim=1)
    other_images = draw(similarities.detach().T, same)[usable]
    other_captions = draw(similarities.detach(), same)[usable]
    rows = torch.arange(count, device=image_ids.device)
    image_rows = torch.cat([rows, other_images, rows[usable]])
    caption_rows = torch.cat([rows, rows[usable], other_captions])

    def logits_at(images: Tensor, captions: Tensor) -> Tensor:
        return logits_of(image_states[images], {name: value[captions] for name, value in tokens.items()})

    if chunk is None:
        logits = logits_at(image_rows, caption_rows)
    else:
        pairs = zip(image_rows.split(chunk), caption_rows.split(chunk), strict=True)
        logits = torch.cat([recomputed(logits_at, *pair) for pair in pairs])
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[:count] = 1
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def draw(similarities: Tensor, same: Tensor) -> Tensor:
    """A column (n,) of each row, by the softmax of its similarities (n, n), never one where `same`.

    A row of nothing else gets column 0.
    """
    weights = (similarities.softmax(dim=1) + _LEAST_WEIGHT).masked_fill(same, 0)
    weights[same.all(dim=1), 0] = 1
    return torch.multinomial(weights, 1)[:, 0]


def queue_loss(
    network: Any, images: Tensor, captions: Tensor, keys: Keys, *, alpha: float, distil: bool = True
) -> Tensor:
    """Contrast of vectors (B, d) with the batch's momentum vectors and the queues of the network, both directions.

    Targets are all keys of the same image; with `distil` they are mixed, by `alpha`, with what the momentum towers
    think. The network's `image_queue`, `text_queue` (d, Q), `idx_queue` (1, Q) and `temp` are read.
    """
    image_keys = torch.cat([keys.images.T, network.image_queue.clone()], dim=1)
    caption_keys = torch.cat([keys.captions.T, network.text_queue.clone()], dim=1)
    key_ids = torch.cat([keys.image_ids, network.idx_queue[0].clone()])
    matches = (keys.image_ids[:, None] == key_ids[None, :]).to(images.dtype)
    matches = matches / matches.sum(dim=1, keepdim=True)
    losses = []
    for queries, own_keys, others in (
        (images, keys.images, caption_keys),
        (captions, keys.captions, image_keys),
    ):
        targets = matches
        if distil:
            with torch.no_grad():
                thought = (own_keys @ others / network.temp).softmax(dim=1)
            targets = alpha * thought + (1 - alpha) * matches
        losses.append(-((queries @ others / network.temp).log_softmax(dim=1) * targets).sum(dim=1).mean())
    return (losses[0] + losses[1]) / 2


@torch.no_grad()
def enqueue(network: Any, keys: Keys) -> None:
    """Write keys over the oldest of the network's queues; any number fits any size."""
    size = network.image_queue.shape[1]
    if not size:
        return
    start, count = int(network.queue_ptr), len(keys.image_ids)
    slots = (torch.arange(count, device=keys.image_ids.device) + start)[-size:] % size
    network.image_queue[:, slots] = keys.images[-size:].T.to(network.image_queue.dtype)
    network.text_queue[:, slots] = keys.captions[-size:].T.to(network.text_queue.dtype)
    network.idx_queue[0, slots] = keys.image_ids[-size:].to(network.idx_queue.dtype)
    network.queue_ptr[0] = (start + count) % size


def smoothed_contrast(logits: Tensor, valid: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy (scalar) of the diagonal of `logits` (B, B) in both directions, with label smoothing over `valid`.

    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    >>> smoothed_contrast(logits, torch.ones(2, 2, dtype=torch.bool), 0.0)
    tensor(0.1539)
    """
    losses = []
    for scores, counted in ((logits, valid), (logits.T, valid.T)):
        log_shares = scores.masked_fill(~counted, -torch.inf).log_softmax(dim=1)
        even = log_shares.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1)
        losses.append(-((1 - smoothing) * log_shares.diagonal() + smoothing * even).mean())
    return (losses[0] + losses[1]) / 2
