"""A whole evaluation split as encoded images and captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lavis_itm_plugins.distributed import gather_encoded, gather_rows, rank, world_size
from lavis_itm_plugins.encoders.encoded import Encoded, concatenate
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.frames import need_image

CAPTIONS_AT_ONCE = 256


def captions_of(dataset: Any) -> tuple[list[str], np.ndarray]:
    """Texts and each one's image row of any LAVIS retrieval dataset.

    Raises ItmError when the dataset has no captions to rank.
    """
    if not hasattr(dataset, "text") or not hasattr(dataset, "txt2img"):
        raise ItmError(f"{type(dataset).__name__} has no captions to rank; evaluate on a retrieval data set")
    images = [dataset.txt2img[i] for i in range(len(dataset.text))]
    return list(dataset.text), np.asarray(images, dtype=np.int64)


@torch.no_grad()
def encode_split(matcher: Any, data_loader: Any) -> tuple[Encoded, Encoded, np.ndarray]:
    """Images in dataset order, captions in order, and `caption_image`, all on every rank; dropout off."""
    was_training = matcher.training
    matcher.eval()
    try:
        texts, caption_image = captions_of(data_loader.dataset)
        images = _encode_images(matcher, data_loader)
        captions = _encode_captions(matcher, texts)
    finally:
        matcher.train(was_training)
    return images, captions, caption_image


def _encode_images(matcher: Any, data_loader: Any) -> Encoded:
    parts, order = [], []
    for samples in tqdm(data_loader, desc="encode images", leave=False, disable=None):
        need_image(samples)
        moved = {**samples, "image": samples["image"].to(matcher.device)}
        parts.append(matcher.encode_images(moved))
        order.append(torch.as_tensor(samples["index"]))
    return in_order(concatenate(parts), torch.cat(order).to(matcher.device), len(data_loader.dataset))


def _encode_captions(matcher: Any, texts: list[str]) -> Encoded:
    """Captions of like length together, so that little padding is computed; the batches are dealt to the ranks."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [by_length[start : start + CAPTIONS_AT_ONCE] for start in range(0, len(texts), CAPTIONS_AT_ONCE)]
    # a rank without a batch repeats the first: the gather needs something of every rank
    own = batches[rank() :: world_size()] or batches[:1]
    parts = [
        matcher.encode_captions([texts[i] for i in rows])
        for rows in tqdm(own, desc="encode captions", leave=False, disable=None)
    ]
    order = torch.tensor([i for rows in own for i in rows], device=matcher.device)
    return in_order(concatenate(parts), order, len(texts))


def in_order(own: Encoded, index: Tensor, total: int) -> Encoded:
    """All `total` items in order on every rank, from what each rank encoded; an item encoded twice counts once.

    Raises ItmError when an item is missing: metrics of a part would look like metrics of the whole.
    """
    encoded, index = gather_encoded(own), gather_rows(index)
    index, rows = index.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    found = int(first.sum())
    if found != total:
        raise ItmError(f"only {found} of {total} items of the split were encoded; the data loader skips some")
    return encoded[rows[first]]
