"""A cache folder: found by what it was made from, built once and whole, built again when damaged."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance.cache import cached, digest_of


class Build:
    """Writes a file, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "values.npy").write_bytes(b"0123456789")


def test_built_once(tmp_path: Path) -> None:
    build = Build()
    folders = {cached(tmp_path, "kind", {"captions": "x", "version": 1}, build) for _ in range(3)}
    assert build.calls == 1 and len(folders) == 1
    other = cached(tmp_path, "kind", {"captions": "y", "version": 1}, build)
    assert build.calls == 2 and other not in folders


@pytest.mark.parametrize("damage", ["cut", "remove", "header", "more"])
def test_a_damaged_folder_is_built_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    build = Build()
    folder = cached(tmp_path, "kind", {"version": 1}, build)
    values = folder / "values.npy"
    if damage == "cut":
        values.write_bytes(b"01234")
    elif damage == "remove":
        values.unlink()
    elif damage == "more":
        (folder / "other.npy").write_bytes(b"")
    else:
        (folder / "header.json").write_text("{")
    assert cached(tmp_path, "kind", {"version": 1}, build) == folder
    assert build.calls == 2 and values.read_bytes() == b"0123456789" and "damaged" in caplog.text


def test_an_interrupted_build_is_never_taken_for_whole(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "values.npy").write_bytes(b"01")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "kind", {}, interrupted)
    left: list[bytes] = []

    def goes_on(folder: Path) -> None:
        left.append((folder / "values.npy").read_bytes())
        (folder / "values.npy").write_bytes(b"0123")

    folder = cached(tmp_path, "kind", {}, goes_on)
    assert left == [b"01"] and (folder / "values.npy").read_bytes() == b"0123"


def test_several_at_once_build_once(tmp_path: Path) -> None:
    build, started = Build(), threading.Barrier(4)

    def ask() -> None:
        started.wait()
        cached(tmp_path, "kind", {}, build)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.calls == 1


def test_a_complete_folder_is_only_read(tmp_path: Path) -> None:
    build = Build()
    folder = cached(tmp_path, "kind", {}, build)
    before = sorted(os.listdir(tmp_path))
    (tmp_path / ".kind.lock").unlink(missing_ok=True)
    for path in (folder, tmp_path):
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert cached(tmp_path, "kind", {}, build) == folder
        assert build.calls == 1 and sorted(os.listdir(tmp_path)) == before
    finally:
        for path in (tmp_path, folder):
            path.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ItmError, match=r"cannot write .*/file/kind-.* set LAVIS_ITM_CACHE to a writable folder"):
        cached(tmp_path / "file", "kind", {}, Build())


def test_the_digest_knows_order_and_borders() -> None:
    texts = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"], []]
    assert len({digest_of(part) for part in texts}) == len(texts)
    assert digest_of(["\ud800"])  # half a character, as broken files have
