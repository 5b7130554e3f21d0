"""Losses on a score matrix: tensors in, one number out, no LAVIS. One paper, one file.

``__all__`` lists the public losses and nothing else (registration.py registers each of them); what a new loss can
build on is in ``scores.py`` (checks, precision, masks) and ``hinges.py`` (hinges over negatives, reductions).
"""

from lavis_itm_plugins.losses.boosting import boosting_loss, contrastive_boosting_loss
from lavis_itm_plugins.losses.distillation import distillation_loss
from lavis_itm_plugins.losses.diversity import diversity_contrastive_loss, diversity_weights
from lavis_itm_plugins.losses.infonce import infonce_loss
from lavis_itm_plugins.losses.kendall import kendall_loss
from lavis_itm_plugins.losses.offline import offline_hinge_loss, offline_infonce_loss
from lavis_itm_plugins.losses.prototypes import label_prediction_loss
from lavis_itm_plugins.losses.quintuplet import quintuplet_loss
from lavis_itm_plugins.losses.shared import shared_distillation_loss, shared_infonce_loss
from lavis_itm_plugins.losses.triplet import triplet_loss

__all__ = [
    "boosting_loss",
    "contrastive_boosting_loss",
    "distillation_loss",
    "diversity_contrastive_loss",
    "diversity_weights",
    "infonce_loss",
    "kendall_loss",
    "label_prediction_loss",
    "offline_hinge_loss",
    "offline_infonce_loss",
    "quintuplet_loss",
    "shared_distillation_loss",
    "shared_infonce_loss",
    "triplet_loss",
]
