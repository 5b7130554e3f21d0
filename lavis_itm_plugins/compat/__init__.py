"""Every repair that LAVIS 1.0.2 needs today: each named, each guarded by the condition that needs it.

Where the guard does not hold, LAVIS's own code runs: on a GPU nothing changes. A repair belongs here when it replaces a
name of LAVIS; faults that our own runner, task or collater avoid are solved there.
"""

from lavis_itm_plugins.compat import device, distributed  # noqa: F401  their decorators fill the list
from lavis_itm_plugins.compat.table import Repair, apply, repairs

__all__ = ["Repair", "apply", "repairs"]
