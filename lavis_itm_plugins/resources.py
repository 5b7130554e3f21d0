"""Where the YAML files that come with the package lie, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

from lavis_itm_plugins.errors import ItmError, nearest
from lavis_itm_plugins.paths import user_path

PACKAGE = Path(__file__).resolve().parent


def config_file(name: str) -> Path:
    """A default file of a model or dataset, such as `models/itm_vse_regions_gru.yaml`, as an absolute path.

    LAVIS joins the paths of default files to its own folder; an absolute path survives that.
    """
    return _shipped("configs") / name


def find_config(path: str | Path) -> Path:
    """A YAML file that a person named: as it stands, or else among the projects shipped with us.

    Raises ItmError, with the nearest shipped projects, when it is in neither place.
    """
    wanted = user_path(path)
    parts = wanted.parts[1:] if wanted.parts[:1] == ("projects",) else wanted.parts
    for candidate in (wanted, _shipped("projects").joinpath(*parts)):
        if candidate.is_file():
            return candidate
    raise ItmError(f"{path}: no such file; {_suggestion(wanted)}")


def shipped_projects() -> list[str]:
    """Every project shipped with us, as `--cfg-path` takes it: `projects/dbl/train/f30k.yaml`."""
    root = _shipped("projects")
    return sorted(f"projects/{file.relative_to(root).as_posix()}" for file in root.rglob("*.yaml"))


def _shipped(folder: str) -> Path:
    """A folder of the repository: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def _suggestion(wanted: Path) -> str:
    shipped = shipped_projects()
    by_name = {Path(project).name: project for project in shipped}
    close = nearest(wanted.as_posix(), shipped) or [by_name[name] for name in nearest(wanted.name, by_name)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"the shipped ones are in {_shipped('projects')}"
