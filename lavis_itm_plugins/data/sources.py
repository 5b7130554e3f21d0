"""Which data set a person means: a path, or the data sets of a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_itm_plugins.data.findings import Report
from lavis_itm_plugins.data.precomp import FILE_PREFIXES, find_prefix
from lavis_itm_plugins.data.verify import verify_features, verify_pictures
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path


def verify_source(
    source: str | Mapping[str, str], *, images: str | None = None, format: str | None = None, checksums: bool = True
) -> Report:
    """Verify a folder of features, or pictures with annotations."""
    if isinstance(source, str) and format is None and is_precomp(user_path(source)):
        return verify_features(source, checksums=checksums)
    return verify_pictures(source, images=images, format=format, checksums=checksums)


def is_precomp(folder: Path) -> bool:
    """Whether a folder has files of the SCAN layout."""
    return folder.is_dir() and any(find_prefix(folder, split) for split in FILE_PREFIXES)


def configured(cfg_path: str, options: Sequence[str]) -> list[dict[str, Any]]:
    """Arguments of `verify_source` for each data set of a project; raises ItmError for one that is unknown here."""
    from lavis_itm_plugins import register

    register()
    from lavis_itm_plugins.config.load import ProjectConfig
    from lavis_itm_plugins.registry import registered
    from lavis_itm_plugins.resources import find_config

    sections = ProjectConfig(find_config(cfg_path), options).datasets_cfg
    return [_of_builder(name, registered("builder")[name](sections[name])) for name in sections]


def _of_builder(name: str, builder: Any) -> dict[str, Any]:
    settings = getattr(builder, "settings", None)
    if name == "itm_precomp":
        return {"source": settings.root}
    if name == "itm_pairs":
        return {"source": settings.annotations, "images": settings.images, "format": settings.format}
    if name == "itm_scenes":
        return {"source": str(builder.folder() / "dataset.json")}
    return _of_lavis(name, builder.config.get("build_info"))


def _of_lavis(name: str, build_info: Any) -> dict[str, Any]:
    """LAVIS's retrieval data sets keep a file for each split, below the cache folder unless absolute."""
    from lavis.common.utils import get_cache_path

    try:
        storages = {split: part.storage for split, part in build_info.annotations.items()}
        images = get_cache_path(build_info.images.storage)
    except AttributeError:
        raise ItmError(f"{name}: this data set has no annotations of images to verify; give its file itself") from None
    several = [split for split, storage in storages.items() if not isinstance(storage, str)]
    if several:
        raise ItmError(f"{name}: {several[0]} has several annotation files; verify each of them by its path")
    return {"source": {split: get_cache_path(path) for split, path in storages.items()}, "images": images}
