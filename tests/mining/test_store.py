"""The candidate store: what it holds, what it refuses, and that no kill, damage or second process changes its bytes."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining import (
    CandidateFilters,
    DotProducts,
    MiningJob,
    build_candidates,
    building,
    data_identity,
    mine_hard_negatives,
    open_candidates,
    passes,
)
from lavis_itm_plugins.mining.building import _Sections
from lavis_itm_plugins.mining.exclusions import Exclusions
from lavis_itm_plugins.mining.store import array_digest

CAPTIONS = [f"caption {row}" for row in range(200)]
OWNERS = np.arange(200) // 5
FILTERS = CandidateFilters(max_score=0.7)
# Blocks of 8 of 40 images, which the fixture below puts into sections of 2, 2 and 1.
BUDGET = 4 / 2**10


@pytest.fixture(scope="module", autouse=True)
def three_sections():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SECTIONS", 3)
        yield


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    # few values, so that products are exact and many tie
    return tuple(rng.integers(-2, 3, (n, 4)).astype(np.float32) / 4 for n in (40, 200))


def job(**changes) -> MiningJob:
    filters = changes.pop("filters", FILTERS)
    return MiningJob(DotProducts(*embeddings()), OWNERS, Exclusions(OWNERS, 40), 6, 4, filters, BUDGET, **changes)


def made_from(**changes) -> dict:
    data = data_identity(changes.pop("captions", CAPTIONS), changes.pop("owners", OWNERS), 40, "pictures")
    return {"data": {**data, **changes}, "model": {"weights": "abc"}, "settings": {"captions_per_image": 6}}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return build_candidates(tmp_path_factory.mktemp("whole"), job(), made_from())


def test_holds_the_lists_of_mining_in_memory(whole):
    mined = mine_hard_negatives(*embeddings(), OWNERS, captions_per_image=6, images_per_caption=4, filters=FILTERS)
    store = open_candidates(whole, made_from()["data"])
    assert store.fingerprint == whole.name and len(whole.name) == 16
    found = store.negatives
    assert isinstance(found.captions, np.memmap) and found.report == mined.report
    for name in ("captions", "images", "positive_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(mined, name))
        assert getattr(found, name).dtype == getattr(mined, name).dtype
    np.testing.assert_array_equal(found.caption_scores, mined.caption_scores.astype(np.float16))
    assert not [path for path in whole.parent.iterdir() if path.suffix == ".part"]


def test_ranks_of_positives_count_the_candidates_above_them(whole):
    store = open_candidates(whole).negatives
    by_image, by_caption = (np.load(whole / f"pos_rank_{name}.npy") for name in ("i2t", "t2i"))
    for caption in (0, 57, 199):
        own = store.positive_scores[caption]
        assert by_image[caption] == (store.caption_scores[OWNERS[caption]] > own).sum()
        assert by_caption[caption] == (store.image_scores[caption] > own).sum()
    assert by_image.max() > 0 and by_caption.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"captions": [*CAPTIONS[:-1], "edited"]}, "captions"),
        ({"captions": CAPTIONS[::-1]}, "captions"),
        ({"owners": OWNERS[::-1]}, "caption_image"),
        ({"split": "val"}, "split"),
        ({"n_images": 41}, "n_images"),
        ({"images": "others"}, "images"),
    ],
)
def test_other_data_are_refused_by_name(whole, changes, field):
    with pytest.raises(ItmError, match=rf"were mined from other data: {field} is .* mine again"):
        open_candidates(whole, made_from(**changes)["data"])


def test_fields_that_the_maker_did_not_know_are_not_compared(tmp_path):
    folder = build_candidates(tmp_path, job(), {"data": {"n_images": 40}, "model": {}, "settings": {}})
    open_candidates(folder, made_from()["data"])
    with pytest.raises(ItmError, match="n_images is 40 there and 41 here"):
        open_candidates(folder, made_from(n_images=41)["data"])


def test_each_part_of_the_fingerprint_gives_another_folder(tmp_path):
    names = {build_candidates(tmp_path, job(), made_from()).name}
    for part in ("data", "model", "settings"):
        names.add(build_candidates(tmp_path, job(), {**made_from(), part: {"other": 1}}).name)
    assert len(names) == 4


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("block", [0, 1, 3, 4])
def test_interrupted_at_any_block_the_rest_gives_the_same_bytes(block, whole, tmp_path, monkeypatch):
    stock, done = passes.TilePass.run, []

    def run(*given):
        done.append(given[1])
        if len(done) == block + 1:
            raise Interrupted
        return stock(*given)

    monkeypatch.setattr(passes.TilePass, "run", run)
    with pytest.raises(Interrupted):
        build_candidates(tmp_path, job(), made_from())
    assert not (tmp_path / whole.name).exists()
    done.clear()
    monkeypatch.setattr(passes.TilePass, "run", lambda *given: (done.append(given[1]), stock(*given))[1])
    folder = build_candidates(tmp_path, job(), made_from())
    assert contents(folder) == contents(whole)
    # whole sections are not mined again
    assert len(done) == 5 - {0: 0, 1: 0, 3: 2, 4: 4}[block]


@pytest.mark.parametrize("kind", ["captions.npy", "images.npy", "json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_section_is_mined_again(kind, damage, whole, tmp_path):
    part = tmp_path / f".{whole.name}.part"
    part.mkdir()
    _Sections(part, job()).mine(0, 1)
    [path, *_] = sorted(part.glob(f"section-16-*{kind}"))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content[:-9] + b"7" * 9)
    assert contents(build_candidates(tmp_path, job(), made_from())) == contents(whole)


@pytest.mark.parametrize("name", ["i2t_idx.npy", "meta.json", "pos_score.npy"])
def test_a_damaged_store_is_refused_and_mined_again(name, whole, tmp_path, caplog):
    folder = build_candidates(tmp_path, job(), made_from())
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(ItmError, match="are damaged or not whole; delete the folder and mine again"):
        open_candidates(folder)
    assert contents(build_candidates(tmp_path, job(), made_from())) == contents(whole)
    assert "was damaged; it was mined again" in caplog.text


def test_a_changed_value_is_damage(whole, tmp_path):
    folder = build_candidates(tmp_path, job(), made_from())
    content = (folder / "t2i_idx.npy").read_bytes()
    (folder / "t2i_idx.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ItmError, match="are damaged or not whole"):
        open_candidates(folder)


def test_a_missing_store_and_a_newer_format_are_said(whole, tmp_path):
    with pytest.raises(ItmError, match="do not exist; make them with lavis-itm mine"):
        open_candidates(tmp_path / "none")
    folder = build_candidates(tmp_path, job(), made_from())
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"schema": 2', '"schema": 3'))
    with pytest.raises(ItmError, match="are of format 3, not 2"):
        open_candidates(folder)


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(whole, tmp_path, monkeypatch):
    kept = build_candidates(tmp_path, job(), made_from())
    before = contents(kept)

    def full(*_):
        raise OSError(28, "No space left on device")

    def full_for_numpy(*_):
        raise OSError("96 requested and 0 written")

    for save, message in ((full, "No space left on device"), (full_for_numpy, "96 requested and 0 written")):
        monkeypatch.setattr(np, "save", save)
        with pytest.raises(ItmError, match=rf"cannot write candidate lists to .*: {message}"):
            build_candidates(tmp_path, job(), {**made_from(), "model": {"weights": "new"}})
    assert contents(kept) == before


def test_a_place_that_is_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ItmError, match=r"cannot write candidate lists to .*; free some space or choose another folder"):
        build_candidates(tmp_path / "file", job(), made_from())


def in_another_process(root: Path) -> int:
    """Mine into `root` in a forked child; gives its number."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        # tqdm's lock is one for all forks: a child that dies within it would hold it for ever
        tqdm.set_lock(threading.RLock())
        try:
            build_candidates(root, job(), made_from())
        finally:
            os._exit(0)
    return child


def test_a_second_process_waits_and_takes_what_the_first_mined(whole, tmp_path):
    with (tmp_path / f".{whole.name}.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        second = in_another_process(tmp_path)
        time.sleep(0.5)
        assert os.waitpid(second, os.WNOHANG) == (0, 0)
        assert not (tmp_path / f".{whole.name}.part").exists()
        # the first one's work appears while the second waits
        first = build_candidates(tmp_path / "elsewhere", job(), made_from())
        os.rename(first, tmp_path / whole.name)
        number = (tmp_path / whole.name).stat().st_ino
    os.waitpid(second, 0)
    assert (tmp_path / whole.name).stat().st_ino == number and contents(tmp_path / whole.name) == contents(whole)


@pytest.mark.full
@pytest.mark.parametrize("wait", [0.0, 0.01, 0.02, 0.03, 0.05, 0.1])
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(wait, whole, tmp_path):
    first = in_another_process(tmp_path)
    while not (tmp_path / f".{whole.name}.part").exists() and not (tmp_path / whole.name).exists():
        time.sleep(0.001)
    time.sleep(wait)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert contents(build_candidates(tmp_path, job(), made_from())) == contents(whole)


def test_a_hash_of_an_array_is_of_type_shape_and_values():
    array = np.arange(6, dtype=np.int64)
    others = (array.astype(np.int32), array.reshape(2, 3), array + 1, array[::-1])
    assert len({array_digest(array), *map(array_digest, others)}) == 5
    assert array_digest(array) == array_digest(np.arange(12)[::2] // 2)
