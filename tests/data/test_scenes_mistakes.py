"""What generated data cannot be made of, written to or read from is refused with a sentence that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data.small_scenes import SMALL

from lavis_itm_plugins.data.scenes import Claims, Mention, SceneConfig, build_scenes, load_scenes
from lavis_itm_plugins.errors import ItmError


@pytest.mark.parametrize(
    ("field", "value"),
    [("train", 0), ("val", -1), ("test", 2.5), ("seed", -1), ("seed", "1"), ("size", 8), ("size", 999), ("test", True)],
)
def test_bad_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ItmError, match=rf"{field} is {re.escape(repr(value))}; give"):
        SceneConfig(**{field: value})  # type: ignore[arg-type]


def test_too_many_pictures() -> None:
    with pytest.raises(ItmError, match="1000750 pictures"):
        SceneConfig(train=1_000_000)


def test_unknown_split_and_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ItmError, match="did you mean train"):
        load_scenes(folder, "trian")
    with pytest.raises(ItmError, match="build_scenes"):
        load_scenes(tmp_path, "train")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ItmError, match="build_scenes"):
        load_scenes(tmp_path, "train")


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ItmError, match="LAVIS_ITM_CACHE"):
        build_scenes(SMALL, tmp_path / "file" / "below")


def test_claims_about_nothing_or_too_much() -> None:
    for mentions in ((), (Mention(),), (Mention("cat", count=5),), (Mention("cat", count=0), Mention("car"))):
        with pytest.raises(ItmError, match="1 to 4 things"):
            Claims(mentions)


def test_unknown_looks_are_named() -> None:
    with pytest.raises(ItmError, match='unknown kind "catt"; did you mean cat'):
        Mention("catt")
    with pytest.raises(ItmError, match='unknown relation "lleft"; did you mean left'):
        Claims((Mention("cat"), Mention("car")), ((0, "lleft", 1),))
    with pytest.raises(ItmError, match='unknown background "nigth"; did you mean night'):
        Claims((Mention("cat"),), background="nigth")
