"""A whole evaluation split as encoded images and captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lavis_itm_plugins.encoders.encoded import Encoded, concatenate
from lavis_itm_plugins.errors import ItmError

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
    """Images in dataset order, captions in order, and `caption_image`; dropout off, kept on the matcher's device."""
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
        moved = {**samples, "image": samples["image"].to(matcher.device)}
        parts.append(matcher.encode_images(moved))
        order.append(torch.as_tensor(samples["index"]))
    rows = torch.cat(order).argsort()
    return concatenate(parts)[rows.to(matcher.device)]


def _encode_captions(matcher: Any, texts: list[str]) -> Encoded:
    """Captions of like length together, so that little padding is computed; returned in order."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = []
    for start in tqdm(range(0, len(texts), CAPTIONS_AT_ONCE), desc="encode captions", leave=False, disable=None):
        rows = by_length[start : start + CAPTIONS_AT_ONCE]
        parts.append(matcher.encode_captions([texts[i] for i in rows]))
    order = torch.as_tensor(by_length).argsort()
    return concatenate(parts)[order.to(matcher.device)]
