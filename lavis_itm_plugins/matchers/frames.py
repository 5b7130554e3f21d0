"""A video as pictures: its frames pass through the image tower one by one, without an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lavis_itm_plugins.errors import ItmError


def frames_of(samples: Mapping[str, Any]) -> int | None:
    """Frames of each video of `samples["image"]` (n, 3, T, H, W); None for pictures (n, 3, H, W)."""
    image = samples["image"]
    return int(image.shape[2]) if image.dim() == 5 else None


def checked_pictures(image: Tensor, arch: str, size: int, *, videos: bool) -> Tensor:
    """Pictures (n, 3, size, size) as they are; of videos (n, 3, T, size, size) all frames, (n T, 3, size, size).

    Raises ItmError for videos, unless the network of this name takes `videos`, for features, and for another size.
    """
    if image.dim() == 5:
        if not videos:
            raise ItmError(f"{arch} reads no videos; use itm_clip, itm_blip or itm_albef")
        image = image.transpose(1, 2).flatten(0, 1)
    if image.dim() != 4:
        raise ItmError(f"{arch} reads pictures (n, 3, {size}, {size}), the data has {tuple(image.shape)}")
    if tuple(image.shape[2:]) != (size, size):
        raise ItmError(
            f"pictures have {tuple(image.shape[2:])} pixels, {arch} reads {size}; set model.vit.size, or the "
            "image_size of the data's vis_processor"
        )
    return image


def need_image(samples: Mapping[str, Any]) -> None:
    """Raise ItmError for a batch without `image`: LAVIS's video items have it from `itm_retrieval` only."""
    if "image" not in samples:
        raise ItmError(f"a batch has {', '.join(samples)} but no image; set run.task: itm_retrieval")


def mean_over_frames(vectors: Tensor, samples: Mapping[str, Any]) -> Tensor:
    """Mean (n, d) of each video's vectors (n T, d); vectors of pictures as they are."""
    frames = frames_of(samples)
    return vectors if frames is None else vectors.unflatten(0, (-1, frames)).mean(dim=1)


def states_in_a_row(states: Tensor, samples: Mapping[str, Any]) -> Tensor:
    """States (n, T P, w) of each video, of its frames' (n T, P, w); those of pictures as they are."""
    frames = frames_of(samples)
    return states if frames is None else states.unflatten(0, (-1, frames)).flatten(1, 2)
