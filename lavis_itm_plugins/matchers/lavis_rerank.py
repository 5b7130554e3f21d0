"""Re-ranking by an image-text matching head: the best pairs of the cosines, scored again; on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lavis_itm_plugins.distributed import gather_rows
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.evaluation import join_directions, retrieval_metrics, score_tiles
from lavis_itm_plugins.matchers.encode import captions_of, encode_split

PAIRS_AT_ONCE = 256
# LAVIS's score of a pair that the head did not see; its cosine is added, which keeps the order of the rest
UNSEEN = -100.0


@torch.no_grad()
def rerank(
    matcher: Any, data_loader: Any, k_test: int, encoded: tuple[Encoded, Encoded] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n_images, n_captions) and (n_captions, n_images): cosine plus matching logit of the best `k_test` each.

    The images pass through the network a second time, so that their states, 1.8 MB each at BLIP's size, are never
    held. `k_test` is clamped to what there is. Every rank gets the whole.
    """
    was_training = matcher.training
    images, captions = encoded or encode_split(matcher, data_loader)[:2]
    matcher.eval()
    try:
        cosines = np.empty((len(images), len(captions)), dtype=np.float32)
        for rows, columns, tile in score_tiles(images, captions, matcher.score, bytes_per_pair=matcher.bytes_per_pair):
            cosines[rows, columns] = tile.float().cpu().numpy()
        by_image = best(cosines, k_test)
        by_caption = best(cosines.T, k_test).T
        logits = _match_logits(matcher, data_loader, by_image | by_caption)
    finally:
        matcher.train(was_training)
    return _joined(cosines, logits, by_image), _joined(cosines, logits, by_caption).T


def reranked_metrics(matcher: Any, data_loader: Any, k_test: int, encoded: tuple[Encoded, Encoded]) -> dict[str, float]:
    """The recalls of re-ranked scores as `itm_txt_r1` and so on, to stand beside those of the cosines."""
    by_image, by_caption = rerank(matcher, data_loader, k_test, encoded)
    caption_image = captions_of(data_loader.dataset)[1]
    metrics = join_directions(
        retrieval_metrics(by_image, caption_image), retrieval_metrics(by_caption.T, caption_image)
    )
    return {f"itm_{name}": value for name, value in metrics.items() if name != "agg_metrics"}


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` largest of each row, or at all.

    >>> best(np.array([[0.1, 0.3, 0.2]]), 2).astype(int)
    array([[0, 1, 1]])
    """
    chosen = np.zeros(scores.shape, dtype=bool)
    count = min(count, scores.shape[1])
    for row, own in zip(chosen, scores, strict=True):
        row[np.argpartition(-own, count - 1)[:count]] = True
    return chosen


def _joined(cosines: np.ndarray, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return np.where(seen, cosines + logits, cosines + np.float32(UNSEEN))


def _match_logits(matcher: Any, data_loader: Any, wanted: np.ndarray) -> np.ndarray:
    """Logits of the wanted pairs (n_images, n_captions), 0 elsewhere; each rank scores the images it is dealt."""
    tokens = matcher.tokens(captions_of(data_loader.dataset)[0])
    rows, found = [], []
    for samples in tqdm(data_loader, desc="re-rank", leave=False, disable=None):
        index = torch.as_tensor(samples["index"])
        states = matcher.image_states(samples)
        own = torch.from_numpy(wanted[index.numpy()])
        logits = torch.zeros(own.shape)
        for pairs in own.nonzero().split(PAIRS_AT_ONCE):
            picture, caption = pairs.T
            at = caption.to(matcher.device)
            chosen = {name: value[at] for name, value in tokens.items()}
            scored = matcher.itm_logits(states[picture.to(matcher.device)], chosen)[:, 1]
            logits[picture, caption] = scored.float().cpu()
        rows.append(index)
        found.append(logits)
    index = gather_rows(torch.cat(rows).to(matcher.device)).cpu()
    everything: Tensor = gather_rows(torch.cat(found).to(matcher.device)).cpu()
    whole = torch.zeros(wanted.shape)
    whole[index] = everything
    return whole.numpy()
