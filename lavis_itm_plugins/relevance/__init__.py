"""Continuous relevance of captions for images: what BCLS ranks by, and what graded metrics compare with. No LAVIS.

``labels(image_rows, caption_rows)`` gives any block of a split, from CIDEr (``cached_cider``) or sentence embeddings
(``cached_sentences``) through ``CaptionLabels``; ``cider_relevance`` and ``sentence_relevance`` take captions and
vectors directly.
"""

from lavis_itm_plugins.relevance.cider import CiderSimilarity, CiderVectors, cached_cider, cider_relevance
from lavis_itm_plugins.relevance.labels import CaptionLabels, RelevanceLabels, gap_quantile, sampled_block
from lavis_itm_plugins.relevance.ngrams import DocumentFrequency, tokenize
from lavis_itm_plugins.relevance.sentences import SentenceSimilarity, cached_sentences, sentence_relevance

__all__ = [
    "CaptionLabels",
    "CiderSimilarity",
    "CiderVectors",
    "DocumentFrequency",
    "RelevanceLabels",
    "SentenceSimilarity",
    "cached_cider",
    "cached_sentences",
    "cider_relevance",
    "gap_quantile",
    "sampled_block",
    "sentence_relevance",
    "tokenize",
]
