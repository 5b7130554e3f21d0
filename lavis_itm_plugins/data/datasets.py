"""LAVIS datasets over a `CaptionSplit`: one item for each caption in training, for each image in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lavis.datasets.datasets.base_dataset import BaseDataset
from torch.utils.data.dataloader import default_collate

from lavis_itm_plugins.data.randomness import keyed_uniform
from lavis_itm_plugins.data.splits import AugmentingSource, CaptionSplit


class _SplitDataset(BaseDataset):
    """What training and evaluation share: fetching by batch, and a collater that accepts what was fetched so."""

    def __init__(self, split: CaptionSplit) -> None:
        super().__init__()
        self.split = split

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        raise NotImplementedError("abstract")

    def collater(self, samples: Any) -> dict[str, Any]:
        """A batch: as `__getitems__` made it, or stacked from single items."""
        return samples if isinstance(samples, dict) else default_collate(samples)


class CaptionDataset(_SplitDataset):
    """Training items: `image`, `text_input`, `image_id` (int64), `index` (row of the caption) and `instance_id`.

    With `region_drop`, `image_mask` (regions,) is False for regions left out this time: a draw of its own for each
    (seed, epoch, caption), and never all of an image's regions.
    """

    def __init__(self, split: CaptionSplit, *, region_drop: float = 0.0, seed: int = 0) -> None:
        super().__init__(split)
        self.region_drop = region_drop
        self.seed = seed
        self.epoch = 0
        self.image_ids = np.asarray(split.caption_image, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.split.captions)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; random draws depend on it."""
        self.epoch = epoch

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(indices)
        batch = {
            "image": self.fetch_images(rows),
            "text_input": [self.split.captions[row] for row in rows],
            "image_id": torch.from_numpy(self.image_ids[rows]),
            "index": torch.from_numpy(rows.astype(np.int64)),
            "instance_id": [str(row) for row in rows],
        }
        if self.region_drop:
            batch["image_mask"] = self._keep_mask(rows, batch["image"].shape[1])
        return batch

    def fetch_images(self, rows: np.ndarray) -> torch.Tensor:
        """The images of these captions; a random variant is a function of (seed, epoch, caption)."""
        images, positions = self.split.images, self.split.image_rows[self.split.caption_image[rows]]
        if isinstance(images, AugmentingSource):
            return images.fetch_augmented(positions, [(self.seed, self.epoch, int(row)) for row in rows])
        return images.fetch(positions)

    def _keep_mask(self, rows: np.ndarray, regions: int) -> torch.Tensor:
        draws = keyed_uniform(self.seed, self.epoch, rows, regions)
        keep = draws >= self.region_drop
        keep[np.arange(len(rows)), draws.argmax(axis=1)] = True
        return torch.from_numpy(keep)


class CaptionEvalDataset(_SplitDataset):
    """Evaluation items: `image` and `index`, one for each image, with LAVIS's `text`, `txt2img` and `img2txt`."""

    def __init__(self, split: CaptionSplit) -> None:
        super().__init__(split)
        self.text = list(split.captions)
        self.caption_image = np.asarray(split.caption_image, dtype=np.int64)
        self.image = list(split.image_names)
        self.txt2img = dict(enumerate(self.caption_image.tolist()))
        self.img2txt: dict[int, list[int]] = {row: [] for row in range(split.n_images)}
        for caption, row in self.txt2img.items():
            self.img2txt[row].append(caption)

    def __len__(self) -> int:
        return self.split.n_images

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(indices)
        return {
            "image": self.split.images.fetch(self.split.image_rows[rows]),
            "index": torch.from_numpy(rows.astype(np.int64)),
        }
