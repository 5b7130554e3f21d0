"""Losses on a score matrix: tensors in, one number out, no LAVIS. One paper, one file.

``__all__`` lists the public losses and nothing else (registration.py registers each of them); what a new loss can
build on is in ``scores.py`` (checks, precision, masks) and ``hinges.py`` (hinges over negatives, reductions).
"""

from lavis_itm_plugins.losses.boosting import boosting_loss, contrastive_boosting_loss
from lavis_itm_plugins.losses.diversity import diversity_contrastive_loss, diversity_weights
from lavis_itm_plugins.losses.infonce import infonce_loss
from lavis_itm_plugins.losses.kendall import kendall_loss
from lavis_itm_plugins.losses.quintuplet import quintuplet_loss
from lavis_itm_plugins.losses.triplet import triplet_loss

__all__ = [
    "boosting_loss",
    "contrastive_boosting_loss",
    "diversity_contrastive_loss",
    "diversity_weights",
    "infonce_loss",
    "kendall_loss",
    "quintuplet_loss",
    "triplet_loss",
]
