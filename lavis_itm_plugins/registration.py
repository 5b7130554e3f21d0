"""Enters everything of ours into LAVIS: repairs, then models, tasks, runners and builders, then losses and zoos."""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction

from lavis_itm_plugins import _torchvision

# Importing one of these runs its register_* decorators.
MODULES = (
    "lavis_itm_plugins.matchers.vse",
    "lavis_itm_plugins.matchers.scan",
    "lavis_itm_plugins.matchers.bfan",
    "lavis_itm_plugins.matchers.vsrn",
    "lavis_itm_plugins.matchers.sgraf",
    "lavis_itm_plugins.matchers.clip",
    "lavis_itm_plugins.matchers.blip",
    "lavis_itm_plugins.matchers.albef",
    "lavis_itm_plugins.matchers.blip2",
    "lavis_itm_plugins.methods.aoq",
    "lavis_itm_plugins.methods.bcls",
    "lavis_itm_plugins.methods.coder",
    "lavis_itm_plugins.methods.dbl",
    "lavis_itm_plugins.tasks.retrieval",
    "lavis_itm_plugins.runners.runner",
    "lavis_itm_plugins.runners.schedulers",
    "lavis_itm_plugins.data.builders",
    "lavis_itm_plugins.data.builders_pairs",
)
LOSSES = "lavis_itm_plugins.losses"


def register_all() -> None:
    """Make every name of ours known to LAVIS, and apply the repairs it needs; quiet when called again."""
    _torchvision.declare_operators()
    # LAVIS imports torchvision, so none of its modules may be imported above this line
    import lavis.common.optims
    import lavis.runners  # noqa: F401  neither is imported by `import lavis`; our classes are looked up beside theirs

    from lavis_itm_plugins import compat

    compat.apply()
    for name in MODULES:
        _import(name)
    _register_losses()
    _extend_zoos()


def _import(name: str) -> None:
    try:
        import_module(name)
    except Exception as error:
        # the hook turns this into a one-line warning, which has to say where to look
        raise ImportError(f"{name} cannot be imported ({type(error).__name__}: {error})", name=name) from error


def _register_losses() -> None:
    """Every public loss function becomes `itm.losses.NAME`; losses import no LAVIS, so they cannot do it themselves."""
    from lavis_itm_plugins.registry import register_loss

    losses = import_module(LOSSES)
    for name in losses.__all__:
        if isfunction(getattr(losses, name)):
            register_loss(name)(getattr(losses, name))


def _extend_zoos() -> None:
    """LAVIS lists its names once, at import: add those that came later."""
    from lavis.datasets.builders import dataset_zoo
    from lavis.models import model_zoo

    from lavis_itm_plugins.registry import registered

    for name, model in registered("model").items():
        model_zoo.model_zoo.setdefault(name, list(model.PRETRAINED_MODEL_CONFIG_DICT))
    for name, builder in registered("builder").items():
        dataset_zoo.dataset_zoo.setdefault(name, list(builder.DATASET_CONFIG_DICT))
