"""Every key of a project that belongs to us, checked before data or weights are touched."""

from __future__ import annotations

from typing import Any

from lavis.common.registry import registry


def check_sections(config: Any) -> None:
    """Parse the model, data set and run sections of our own classes; raises ItmError as they would later."""
    model = registry.get_model_class(config.model.arch)
    if hasattr(model, "parse_config"):
        model.parse_config(config.model)
    for name in config.datasets:
        builder = registry.get_builder_class(name)
        if hasattr(builder, "parse_config"):
            builder.parse_config(config.datasets[name])
    if config.run.get("runner") == "itm_runner":
        from lavis_itm_plugins.runners.settings import parse_run

        parse_run(config.run)
