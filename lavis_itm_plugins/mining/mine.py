"""Exact hard negatives of a whole training set, both directions from one pass over the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.distributed import every_rank, gather_rows, rank, world_size
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.mining.exclusions import Exclusions, check_length
from lavis_itm_plugins.mining.negatives import NO_FILTERS, CandidateFilters, HardNegatives
from lavis_itm_plugins.mining.passes import BYTES_PER_PAIR, Limits, TilePass, tile_shape
from lavis_itm_plugins.mining.running import Keys, merge_lists, split_keys
from lavis_itm_plugins.mining.scores import DotProducts, Scorer, positive_scores

BACKENDS = ("auto", "torch", "faiss")


@dataclass(frozen=True)
class MiningSettings:
    """How long the lists are and what is left out of them; part of a candidate store's fingerprint."""

    captions_per_image: int = setting(300, low=1, help="length of each image's list")
    images_per_caption: int = setting(60, low=1, help="length of each caption's list")
    duplicates: bool = setting(True, help="a caption with the text of an image's own caption is no negative of it")
    filters: CandidateFilters = field(default_factory=CandidateFilters)


def mine_hard_negatives(
    image_embeds: Any,
    caption_embeds: Any,
    caption_image: Any,
    *,
    captions_per_image: int = 300,
    images_per_caption: int = 60,
    backend: str = "auto",
    memory_budget_mb: float = 1024,
    captions: Sequence[str] | None = None,
    image_groups: Sequence[int] | None = None,
    filters: CandidateFilters = NO_FILTERS,
    normalize: bool = False,
) -> HardNegatives:
    """The best-scored captions of every image and images of every caption that do not match, over the whole set.

    Exact, and the same at any tile size up to rounding of the products. Scores are dot products in float32. Under
    torchrun every rank gives all embeddings, works through its part of the images, and gets the whole result.

    Args:
        image_embeds: (N, D) array, memory map or tensor; on a GPU the products are computed there.
        caption_embeds: (M, D).
        caption_image: (M,) integers, the image of each caption.
        captions_per_image: length of each image's list.
        images_per_caption: length of each caption's list.
        backend: "torch" ("auto" too) | "faiss", which needs the extra of that name.
        memory_budget_mb: for score tiles; beyond it and the embeddings each caption takes 8 (2 K + 32) bytes.
        captions: (M,) texts; an image's own captions are then no negatives of it under any other image either.
        image_groups: (N,) integers, equal for copies of one picture, such as a hash: captions of a copy are no
            negatives.
        filters: candidates to leave out as suspected matches.
        normalize: scale every row to length 1 first.

    Returns:
        HardNegatives, ordered by score and then by id, filled up with -1 where there are fewer candidates.

    Raises:
        ItmError: wrong shapes, image numbers outside the images, scores that are not finite, faiss not installed.

    >>> import torch
    >>> images, captions = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    >>> mined = mine_hard_negatives(images, captions, [0, 0, 1, 2], captions_per_image=2, images_per_caption=2)
    >>> mined.captions.tolist(), mined.images.tolist()     # all scores of other images are 0
    ([[2, 3], [0, 1], [0, 1]], [[1, 2], [1, 2], [0, 2], [0, 1]])
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", str(backend), BACKENDS)
    for name, length in (("captions_per_image", captions_per_image), ("images_per_caption", images_per_caption)):
        if not isinstance(length, (int, np.integer)) or length < 1:
            raise ItmError(f"{name} is {length!r}; give a whole number of at least 1")
    scorer = DotProducts(image_embeds, caption_embeds, normalize=normalize)
    owners = caption_images(caption_image, scorer.n_images, scorer.n_captions)
    exclusions = Exclusions(owners, scorer.n_images, captions=captions, image_groups=image_groups)
    job = MiningJob(scorer, owners, exclusions, captions_per_image, images_per_caption, filters, memory_budget_mb)
    if backend == "faiss":
        from lavis_itm_plugins.mining.with_faiss import faiss_lists

        return job.result(*faiss_lists(job, image_embeds, caption_embeds, normalize=normalize))
    return job.mine()


class MiningJob:
    """What is mined from which scores; `mine` gives the result, the other parts serve the store on disk."""

    def __init__(
        self,
        scorer: Scorer,
        caption_image: NDArray[np.int64],
        exclusions: Exclusions,
        captions_per_image: int,
        images_per_caption: int,
        filters: CandidateFilters = NO_FILTERS,
        memory_budget_mb: float = 1024,
        bytes_per_pair: int = BYTES_PER_PAIR,
    ) -> None:
        self.scorer, self.caption_image, self.exclusions, self.filters = scorer, caption_image, exclusions, filters
        self.positives = positive_scores(scorer, caption_image)
        best = np.full(scorer.n_images, -np.inf, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            # what is not finite is refused with its place when its tile is scored
            np.maximum.at(best, caption_image, self.positives)
        self.limits = Limits(filters.limits(best), filters.limits(self.positives))
        self.tiles = TilePass(
            scorer.tile,
            exclusions,
            scorer.n_captions,
            captions_per_image + filters.skip,
            images_per_caption + filters.skip,
            tile_shape(memory_budget_mb, scorer.n_images, bytes_per_pair),
            self.limits,
        )

    def blocks(self) -> list[slice]:
        """The images in the blocks that are scored together."""
        return list(self.tiles.blocks(slice(0, self.scorer.n_images)))

    def mine_blocks(self, blocks: Sequence[slice], by_caption: Any, bar: Any = None) -> Keys:
        """Lists of the images of some blocks, in order; what captions gain goes into `by_caption`."""
        lists = [np.empty((0, self.tiles.captions_per_image), dtype=np.int64)]
        for block in blocks:
            lists.append(self.tiles.run(block, by_caption))
            if bar is not None:
                bar.update(block.stop - block.start)
        return np.concatenate(lists)

    def mine(self) -> HardNegatives:
        """Work through this rank's blocks and join the lists of all ranks."""
        own = self.blocks()[rank() :: world_size()]
        by_caption = self.tiles.caption_lists()
        with progress(sum(block.stop - block.start for block in own)) as bar:
            lists = self.mine_blocks(own, by_caption, bar)
        gained = by_caption.take()
        del by_caption
        if world_size() > 1:
            numbers = np.concatenate([np.zeros(0, np.int64), *(np.arange(b.start, b.stop) for b in own)])
            lists = gathered(lists)[np.argsort(gathered(numbers))]
            own_gain = gained
            gained = joined_lists(lambda rows: np.split(gathered(own_gain[rows]), world_size()), own_gain)
            self.limits.dropped = summed(self.limits.dropped)
        return self.result(lists, gained)

    def result(self, by_image: Keys, by_caption: Keys) -> HardNegatives:
        """Lists of ids and scores from keys, without the best ones that the filters skip."""
        skip = self.filters.skip
        captions, caption_scores = split_keys(by_image[:, skip:])
        images, image_scores = split_keys(by_caption[:, skip:])
        report = dict(self.limits.dropped)
        if skip:
            report["skipped_captions"] = int((by_image[:, :skip] != np.iinfo(np.int64).min).sum())
            report["skipped_images"] = int((by_caption[:, :skip] != np.iinfo(np.int64).min).sum())
        report["short_images"] = int((captions[:, -1] < 0).sum())
        report["short_captions"] = int((images[:, -1] < 0).sum())
        return HardNegatives(captions, images, caption_scores, image_scores, self.positives, report)


def caption_images(caption_image: Any, n_images: int, n_captions: int) -> NDArray[np.int64]:
    """The image of each caption (M,) as int64; an image may have no caption. Raises ItmError for anything else."""
    given = caption_image.detach().cpu().numpy() if isinstance(caption_image, torch.Tensor) else caption_image
    array = np.asarray(given)
    check_length("caption_image", array, n_captions)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ItmError(f"caption_image is {array.dtype} of shape {array.shape}; give integers, one per caption")
    ids = array.astype(np.int64)
    outside = np.flatnonzero((ids < 0) | (ids >= n_images))
    if outside.size:
        first = int(outside[0])
        raise ItmError(f"caption {first} has image number {ids[first]}; give rows of image_embeds, 0 to {n_images - 1}")
    return ids


def progress(total: int) -> Any:
    """A bar over images, on the first rank's terminal."""
    return tqdm(total=total, desc="mine", unit="image", leave=False, disable=None if rank() == 0 else True)


def gathered(array: NDArray[Any]) -> NDArray[Any]:
    """Rows of all ranks, in the order of ranks."""
    device = "cuda" if world_size() > 1 and torch.distributed.get_backend() == "nccl" else "cpu"
    return gather_rows(torch.from_numpy(np.ascontiguousarray(array)).to(device)).cpu().numpy()


def joined_lists(parts: Callable[[slice], Sequence[Keys]], like: Keys, rows_at_once: int = 65536) -> Keys:
    """Lists of all captions from those that several parts of the images give; `parts` gives them for some captions."""
    joined = np.empty_like(like)
    for start in range(0, len(joined), rows_at_once):
        rows = slice(start, start + rows_at_once)
        joined[rows] = merge_lists(parts(rows), like.shape[1])
    return joined


def summed(counts: dict[str, int]) -> dict[str, int]:
    """Counts of all ranks added."""
    return {name: sum(one[name] for one in every_rank(counts)) for name in counts}
