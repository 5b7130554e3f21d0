"""Say what works on this machine, what was repaired, and how to mend the rest."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

# Package and why another version would not do; the pins are those of pyproject.toml.
PINNED = {
    "salesforce-lavis": ("1.0.2", "the only version this plugin is tested with"),
    "numpy": ("1.", "NumPy 2 breaks the opencv that LAVIS pins"),
    "pandas": ("2.", "pandas 3 needs NumPy 2"),
    "transformers": ("4.26", "LAVIS needs an old transformers"),
    "torch": ("2.", "2.5 or later loads the plugin by itself"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(given: argparse.Namespace) -> int:
    """Print the report; exit code 1 when something needs mending."""
    checks = [_python(), *(_package(name, *pin) for name, pin in PINNED.items()), _autoload()]
    checks += _imports() if all(ok for ok, _, _ in checks[1:3]) else []
    for ok, name, said in checks:
        print(f"{'ok' if ok else 'MEND':<5} {name:<28} {said}")
    if all(ok for ok, _, _ in checks):
        print("\nall is well; try: lavis-itm demo")
        return 0
    return 1


def _python() -> tuple[bool, str, str]:
    given = platform.python_version()
    good = given.startswith(("3.10.", "3.11."))
    return good, "python", given if good else f"{given}: install Python 3.10 or 3.11"


def _package(name: str, wanted: str, why: str) -> tuple[bool, str, str]:
    try:
        found = version(name)
    except PackageNotFoundError:
        return False, name, f"missing: pip install lavis-itm-plugins ({why})"
    good = found.startswith(wanted)
    return good, name, found if good else f"{found}, expected {wanted}x: {why}; install with -c constraints.txt"


def _autoload() -> tuple[bool, str, str]:
    """Whether a pip install makes itself known when torch is imported."""
    for switch in ("LAVIS_ITM_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        if os.environ.get(switch) == "0":
            return (
                True,
                "autoload",
                f"switched off by {switch}=0: use lavis-itm train or python -m lavis_itm_plugins.train",
            )
    if any(point.name == "lavis_itm" for point in entry_points(group="torch.backends")):
        return True, "autoload", "LAVIS's own train.py finds our names"
    return False, "autoload", "not installed as a package: pip install . (or use python -m lavis_itm_plugins.train)"


def _imports() -> list[tuple[bool, str, str]]:
    """Import LAVIS with everything of ours, list its repairs and the devices."""
    try:
        from lavis_itm_plugins import register

        register()
    except Exception as error:
        return [(False, "lavis", f"import failed ({type(error).__name__}: {error}); reinstall with -c constraints.txt")]
    import torch

    from lavis_itm_plugins.compat import repairs
    from lavis_itm_plugins.data.scenes import default_cache_root

    rows = [(True, "lavis", "imports, and knows our models")]
    for repair in repairs():
        state = "repaired" if repair.applied else "not needed here"
        rows.append((repair.applied or not repair.needed, f"repair {repair.name}", f"{state}: {repair.detail}"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append((True, "devices", f"cpu ({torch.get_num_threads()} threads){''.join(f', {gpu}' for gpu in gpus)}"))
    cache = default_cache_root()
    writable = os.access(next(p for p in (cache, *cache.parents) if p.exists()), os.W_OK)
    rows.append((writable, "cache", f"{cache}{'' if writable else ' is not writable: set LAVIS_ITM_CACHE'}"))
    return rows
