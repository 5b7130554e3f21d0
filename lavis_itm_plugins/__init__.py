"""Image-text matching for Salesforce LAVIS: DBL, AOQ, BCLS, CODER and the field's matching networks."""

from __future__ import annotations

__version__ = "0.1.0"


def register() -> None:
    """Make every model, task, runner, builder and loss known to LAVIS; quiet when called again.

    A pip install does this by itself when LAVIS is imported. Call it where that is switched off
    (`LAVIS_ITM_AUTOLOAD=0`) or where the package is used without being installed.
    """
    from lavis_itm_plugins.registration import register_all

    register_all()
