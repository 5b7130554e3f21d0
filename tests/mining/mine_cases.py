"""Embeddings to mine from, and lists made by sorting to compare with."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lavis_itm_plugins.mining.exclusions import normalized
from lavis_itm_plugins.mining.negatives import NO_FILTERS


def direct(scores, caption_image, k_captions, k_images, *, captions=None, groups=None, filters=NO_FILTERS):
    """Every row sorted, from the definition."""
    n_images, n_captions = scores.shape
    groups = list(range(n_images)) if groups is None else groups
    texts = list(range(n_captions)) if captions is None else [normalized(text) for text in captions]
    owned = {group: set() for group in groups}
    for caption, image in enumerate(caption_image):
        owned[groups[image]].add(texts[caption])
    own = np.array([[texts[j] in owned[groups[i]] for j in range(n_captions)] for i in range(n_images)], dtype=bool)
    own = own.reshape(scores.shape)
    positives = np.array([scores[i, j] for j, i in enumerate(caption_image)])

    def limit(values):
        highest = np.inf if filters.max_score is None else filters.max_score
        if filters.relative_margin is not None and len(values):
            best = max(values)
            highest = min(highest, best - np.float32(filters.relative_margin) * abs(best))
        return highest

    def ranked(row, left_out, highest, k):
        found = [i for i in range(len(row)) if not left_out[i] and row[i] <= highest]
        found = sorted(found, key=lambda i: (-row[i], i))[filters.skip :][:k]
        return found + [-1] * (k - len(found))

    by_image = [
        ranked(scores[i], own[i], limit([positives[j] for j in range(n_captions) if caption_image[j] == i]), k_captions)
        for i in range(n_images)
    ]
    by_caption = [ranked(scores[:, j], own[:, j], limit([positives[j]]), k_images) for j in range(n_captions)]
    shapes = (n_images, k_captions), (n_captions, k_images)
    return np.array(by_image, dtype=np.int64).reshape(shapes[0]), np.array(by_caption, dtype=np.int64).reshape(
        shapes[1]
    )


@st.composite
def sets(draw):
    """Embeddings of few distinct values, so that many products tie exactly; images with any number of captions."""
    n_images, n_captions, size = draw(st.integers(1, 9)), draw(st.integers(0, 24)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, captions = (rng.integers(-2, 3, (n, size)).astype(np.float32) / 4 for n in (n_images, n_captions))
    return images, captions, rng.integers(0, n_images, n_captions), rng


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
