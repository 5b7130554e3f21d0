"""Scores of every image with every caption by cross attention, vectorised: tensors in, (n_images, n_captions) out."""

from lavis_itm_plugins.scoring.bfan import bfan_scores
from lavis_itm_plugins.scoring.dbl import DBLScorer
from lavis_itm_plugins.scoring.scan import scan_scores
from lavis_itm_plugins.scoring.sgraf import SGRAFScorer

__all__ = ["DBLScorer", "SGRAFScorer", "bfan_scores", "scan_scores"]
