"""LAVIS's video retrieval data (`msrvtt_retrieval`, `didemo_retrieval`) as items that matchers read."""

from __future__ import annotations

from typing import Any

import torch
from lavis.common.registry import registry
from lavis.datasets.datasets.retrieval_datasets import VideoRetrievalDataset, VideoRetrievalEvalDataset
from torch import Tensor
from torch.utils.data import Dataset

from lavis_itm_plugins.errors import ItmError


class VideoItems(Dataset):
    """Items of one of LAVIS's video splits, their frames as `image` (3, T, H, W); all else is the split's own.

    Every item has `n_frms` frames of the split's `vis_processor`: LAVIS gives fewer of a short video, and some numbers
    of frames it misses by one. Raises ItmError when the processor gives no fixed number of frames.
    """

    def __init__(self, videos: Any) -> None:
        self.videos, self.frames = videos, getattr(videos.vis_processor, "n_frms", None)
        if self.frames is None or self.frames >= registry.get("MAX_INT"):
            raise ItmError(
                "the videos have no fixed number of frames; give the data set a vis_processor such as "
                "train: {name: alpro_video_train, n_frms: 8, image_size: 224} and eval: {name: alpro_video_eval, ...}"
            )

    def __len__(self) -> int:
        return len(self.videos)

    def __getattr__(self, name: str) -> Any:
        if name == "videos":  # asked for while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.videos, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.videos[index])
        sample["image"] = evenly(sample.pop("video"), self.frames)
        if "text_input" in sample:
            # as the items of LAVIS's images: rows of the annotations
            sample["instance_id"] = str(index)
        return sample


def evenly(clip: Tensor, count: int) -> Tensor:
    """`count` frames of a clip (3, T, H, W), evenly spread, repeated where it has fewer.

    >>> evenly(torch.arange(3.0).view(1, 3, 1, 1), 5).flatten()
    tensor([0., 0., 1., 1., 2.])
    """
    length = clip.shape[1]
    return clip if length == count else clip[:, torch.arange(count) * length // count]


def with_frames_as_images(datasets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """LAVIS's datasets by name and split, the video ones wrapped."""
    video = (VideoRetrievalDataset, VideoRetrievalEvalDataset)
    return {
        name: {split: VideoItems(part) if isinstance(part, video) else part for split, part in parts.items()}
        for name, parts in datasets.items()
    }
