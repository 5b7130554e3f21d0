"""A conversion that was killed, or ran out of disk, goes on where it was and gives the same bytes."""

import errno
import os

import pytest
from cli.data_commands import FEATURES
from pictures import write_jsonl
from PIL import Image

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.data import extract

full = pytest.mark.full


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """20 pictures and their features, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_jsonl(folder)
    assert main(["data", "convert", str(path), *FEATURES, "-o", str(folder / "features")]) == 0
    return path, folder / "features"


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=full), 3, pytest.param(4, marks=full), 5, 6])
def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(saves, whole, data, tmp_path, monkeypatch):
    """12 + 4 + 4 pictures in batches of 5 make 6 saves; the kill falls between a batch's bytes and its save."""
    path, features = whole
    save, saved = extract._Progress.save, []

    def killed(progress):
        saved.append(progress)
        if len(saved) > saves:
            raise KeyboardInterrupt
        save(progress)

    with monkeypatch.context() as patch:
        patch.setattr(extract._Progress, "save", killed)
        stopped = data("convert", path, *FEATURES, "-o", tmp_path / "cut")[0] == 130
    assert stopped == (saves < 6)
    if stopped:
        assert not (tmp_path / "cut").exists() and (tmp_path / "cut.part").is_dir()
        batches = []
        encode = extract.FeatureModel.features
        monkeypatch.setattr(
            extract.FeatureModel, "features", lambda model, batch: batches.append(len(batch)) or encode(model, batch)
        )
        assert data("convert", path, *FEATURES, "-o", tmp_path / "cut")[0] == 0
        todo = [5, 5, 2, 4, 4][saves - 1 :]
        assert [size for size in batches if size > 1] == todo  # what was done is not done again
    assert content(tmp_path / "cut") == content(features)


def test_a_begun_conversion_is_not_mixed_with_another(data, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path)
    (tmp_path / "images" / "04.png").write_bytes(b"")  # of test, the last split
    code, _, error = data("convert", path, *FEATURES, "-o", tmp_path / "out")
    assert code == 2 and "04.png cannot be decoded" in error
    code, _, error = data("convert", path, *FEATURES, "--dtype", "float32", "-o", tmp_path / "out")
    assert error.endswith("out.part was begun with another dtype; remove it, or choose another output\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "04.png")
    assert data("convert", path, *FEATURES, "-o", tmp_path / "out")[0] == 0
    code, _, error = data("convert", path, *FEATURES, "-o", tmp_path / "out")
    assert code == 2 and error.endswith("out exists; remove it, or choose another output\n")


@pytest.mark.parametrize("where", ["_write_texts", "_write_features"])
def test_a_full_disk_is_one_sentence_and_the_conversion_goes_on(where, data, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    given = ("convert", write_jsonl(tmp_path, count=5), *FEATURES, "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(extract, where, full_disk)
        code, _, error = data(*given)
    assert code == 2 and error.count("\n") == 1
    assert "out.part (No space left on device); mend that, and the same command goes on there" in error
    assert data(*given)[0] == 0
