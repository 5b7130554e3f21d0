"""List what is registered: models with their types, tasks, runners, data sets, schedules, losses, shipped projects."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

KINDS = ("models", "tasks", "runners", "datasets", "schedulers", "losses", "projects")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only one kind")
    parser.add_argument("--all", action="store_true", help="LAVIS's own names too, not only this plugin's")


def run(given: argparse.Namespace) -> int:
    """Print the names."""
    for kind in [given.kind] if given.kind else KINDS:
        print(f"{kind}:")
        for name, detail in _names(kind, everything=given.all).items():
            print(f"  {name:<24} {', '.join(detail)}".rstrip())
    return 0


def _names(kind: str, *, everything: bool) -> Mapping[str, Sequence[str]]:
    from lavis_itm_plugins.resources import shipped_projects

    if kind == "projects":
        return {name: () for name in shipped_projects()}
    from lavis_itm_plugins import losses, register

    register()
    if kind == "losses":
        return {f"itm.losses.{name}": () for name in losses.__all__}
    from lavis_itm_plugins.registry import registered

    singular = {"datasets": "builder", "schedulers": "lr_scheduler"}.get(kind, kind[:-1])
    entries = registered(singular)
    types = {"model": "PRETRAINED_MODEL_CONFIG_DICT", "builder": "DATASET_CONFIG_DICT"}.get(singular, "")
    ours = {n: c for n, c in entries.items() if everything or c.__module__.startswith("lavis_itm_plugins")}
    return {name: sorted(getattr(entry, types, ())) for name, entry in sorted(ours.items())}
