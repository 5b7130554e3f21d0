"""A generated data set has the same bytes on every machine; no kill, damage or second process leaves another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data.small_scenes import SMALL
from PIL import Image

from lavis_itm_plugins.data.scenes import SceneConfig, build_scenes, default_cache_root, load_scenes, store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_python(code: str, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(store.__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_same_seed_gives_the_same_bytes_in_another_process_without_torch(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from lavis_itm_plugins.data.scenes import SceneConfig, build_scenes
build_scenes({SMALL!r}, {str(tmp_path)!r})
assert not {{"torch", "lavis"}} & set(sys.modules)
"""
    process = run_python(code, PYTHONHASHSEED="7")
    assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    assert contents(tmp_path / SMALL.folder_name) == contents(folder)


def test_another_seed_gives_other_scenes(folder: Path, tmp_path: Path) -> None:
    other = load_scenes(build_scenes(SceneConfig(30, 6, 12, seed=4, size=32), tmp_path), "train")
    mine = {scene.content for scene in load_scenes(folder, "train").scenes}
    assert len(mine & {scene.content for scene in other.scenes}) < 5


def test_a_complete_folder_is_not_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_write", lambda *_: pytest.fail("written again"))
    assert build_scenes(SMALL, folder.parent) == folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "manifest.json").unlink(),
        lambda root: (root / "manifest.json").write_text("[]"),
        lambda root: next((root / "images" / "val").iterdir()).unlink(),
        lambda root: next((root / "images" / "test").iterdir()).write_bytes(b""),
        lambda root: (root / "scenes.json").write_text((root / "scenes.json").read_text().replace("red", "tan")),
        lambda root: shutil.rmtree(root / "images"),
    ],
)
def test_a_damaged_folder_is_made_again(folder: Path, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    copy = tmp_path / SMALL.folder_name
    shutil.copytree(folder, copy)
    damage(copy)
    assert build_scenes(SMALL, tmp_path) == copy
    assert contents(copy) == contents(folder)


def test_an_interrupted_run_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def interrupted(*arguments: object) -> Image.Image:
        drawn.append(arguments)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return Image.new("RGB", (32, 32))

    monkeypatch.setattr(store, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_scenes(SMALL, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_leavings_of_killed_runs_are_removed(tmp_path: Path) -> None:
    left_over = tmp_path / f".{SMALL.folder_name}.part-abc"
    left_over.mkdir()
    (left_over / "manifest.json").write_text("{}")
    build_scenes(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [SMALL.folder_name]


def test_two_processes_at_once_share_one_build(tmp_path: Path) -> None:
    code = f"""
import os, time
from lavis_itm_plugins.data.scenes import SceneConfig, build_scenes
print("ready", flush=True)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.005)
print(build_scenes(SceneConfig(150, 20, 30, size=32), {str(tmp_path / "cache")!r}).stat().st_ino)
"""
    processes = [run_python(code) for _ in range(2)]
    assert all(process.stdout and process.stdout.readline() == "ready\n" for process in processes)
    (tmp_path / "go").touch()
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    final = tmp_path / "cache" / SceneConfig(150, 20, 30, size=32).folder_name
    # had both built, the folder of the first would have been replaced
    assert [int(out) for out, _ in results] == [final.stat().st_ino] * 2


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LAVIS_ITM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_root() == tmp_path / "home" / ".cache" / "lavis-itm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_root() == tmp_path / "xdg" / "lavis-itm"
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(tmp_path / "mine"))
    assert default_cache_root() == tmp_path / "mine"
    assert build_scenes(SceneConfig(1, 1, 1, size=32)).parent == tmp_path / "mine"
