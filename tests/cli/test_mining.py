"""`lavis-itm encode`, `mine` and `ensemble`: what they write and print, and how each mistake ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.mining import mine_hard_negatives, open_candidates
from lavis_itm_plugins.train import run_training

LISTS = ["--captions-per-image", "6", "--images-per-caption", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs on the same data, and one on other captions."""
    folder = tmp_path_factory.mktemp("runs")
    for name, data in (("a", "data"), ("b", "data"), ("c", "other")):
        root = tiny.write_precomp(folder / data, val=8)
        if data == "other":
            path = root / "dev_caps.txt"
            path.write_text(path.read_text().replace("a photo", "one photo"))
        content = tiny.project(root, folder, max_epoch=1, seed=ord(name), itm={"run_name": name})
        run_training(tiny.write_project(folder / f"{name}.yaml", content))
    return folder


@pytest.fixture
def encoded(runs, tmp_path):
    assert main(["encode", str(runs / "a"), "--output", str(tmp_path / "e")]) == 0
    return tmp_path / "e"


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said.splitlines()[-1].removeprefix("error: ")

    return run


def mined(folder):
    [store] = [path for path in folder.iterdir() if path.is_dir()]
    return open_candidates(store)


def test_encode_writes_plain_arrays(encoded, runs, capsys):
    images, captions = (np.load(encoded / f"{kind}_embeds.npy") for kind in ("image", "caption"))
    assert images.shape == (24, 16) and captions.shape == (120, 16) and images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(captions, axis=1), 1, rtol=1e-5)
    assert np.load(encoded / "caption_image.npy").tolist() == [row // 5 for row in range(120)]
    assert len(json.loads((encoded / "captions.json").read_text())) == 120
    assert json.loads((encoded / "meta.json").read_text())["data"]["split"] == "train"
    half = ["--output", str(encoded / "h"), "--float16", "--split", "val"]
    assert main(["encode", str(runs / "a"), *half]) == 0
    assert np.load(encoded / "h" / "image_embeds.npy").dtype == np.float16
    assert "8 images and 40 captions of val, 16 values each" in capsys.readouterr().out


def test_mining_a_run_or_its_embeddings_gives_the_same_lists(encoded, runs, tmp_path, capsys):
    assert main(["mine", str(runs / "a"), "--output", str(tmp_path / "run"), *LISTS]) == 0
    files = ["--image-embeds", encoded / "image_embeds.npy", "--caption-embeds", encoded / "caption_embeds.npy"]
    files = [*map(str, files), "--captions", str(encoded / "captions.json"), "--output", str(tmp_path / "files")]
    assert main(["mine", *files, *LISTS]) == 0
    one, other = mined(tmp_path / "run"), mined(tmp_path / "files")
    for name in ("captions", "images", "caption_scores", "positive_scores"):
        np.testing.assert_array_equal(getattr(one.negatives, name), getattr(other.negatives, name))
    said = capsys.readouterr().out
    assert f"24 images, 120 captions; lists: {one.folder}" in said
    assert f"--options model.candidates.source={other.folder}" in said
    # a second time the lists are there
    before = (one.folder / "i2t_idx.npy").stat().st_ino
    assert main(["mine", str(runs / "a"), "--output", str(tmp_path / "run"), *LISTS]) == 0
    assert (one.folder / "i2t_idx.npy").stat().st_ino == before


def test_what_encode_wrote_beside_the_embeddings_is_read(encoded, runs, tmp_path):
    """The captions, so that copies are left out, and what the lists belong to, as a run's lists say it."""
    files = [
        "--image-embeds",
        str(encoded / "image_embeds.npy"),
        "--caption-embeds",
        str(encoded / "caption_embeds.npy"),
    ]
    assert main(["mine", *files, "--output", str(tmp_path / "files"), *LISTS]) == 0
    assert main(["mine", str(runs / "a"), "--output", str(tmp_path / "run"), *LISTS]) == 0
    one, other = mined(tmp_path / "run"), mined(tmp_path / "files")
    assert one.made_from["data"] == other.made_from["data"]
    np.testing.assert_array_equal(one.negatives.captions, other.negatives.captions)
    (encoded / "captions.json").write_text(json.dumps([f"caption {row}" for row in range(120)]))
    assert main(["mine", *files, "--output", str(tmp_path / "edited"), *LISTS]) == 0
    assert "images" not in mined(tmp_path / "edited").made_from["data"]


def test_a_coder_run_is_mined_encoded_and_joined_too(runs, tmp_path):
    content = tiny.project(runs / "data", runs, max_epoch=1, itm={"run_name": "coder"})
    small = {"dictionary": {"size": 20}, "concept": {"min_count": 1, "word_dim": 8}, "labels": {"prototypes": 4}}
    content["model"] = {"arch": "itm_coder", "model_type": "full", "matcher": content["model"], **small}
    run_training(tiny.write_project(runs / "coder.yaml", content))
    assert main(["mine", str(runs / "coder"), "--output", str(tmp_path / "lists"), *LISTS]) == 0
    assert mined(tmp_path / "lists").made_from["model"]["arch"] == "itm_coder"
    assert main(["encode", str(runs / "coder"), "--output", str(tmp_path / "e")]) == 0
    assert np.load(tmp_path / "e" / "image_embeds.npy").shape == (24, 32)
    assert main(["ensemble", str(runs / "a"), str(runs / "coder")]) == 0


def test_options_of_mining_reach_the_lists(tmp_path, capsys):
    images, captions = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]] * 2
    owners = np.array([0, 1, 2, 0, 1, 2])
    for name, array in (("i", images), ("c", captions), ("o", owners)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "texts.txt").write_text("a\nb\nc\nd\nA.\nf\n")
    files = [
        "--image-embeds",
        "i.npy",
        "--caption-embeds",
        "c.npy",
        "--caption-image",
        "o.npy",
        "--captions",
        "texts.txt",
    ]
    files = [str(tmp_path / part) if "." in part else part for part in files]
    options = ["--normalize", "--skip", "1", "--max-score", "0.5", "--captions-per-image", "2"]
    assert main(["mine", *files, *options, "--output", str(tmp_path / "lists")]) == 0
    # "A." of image 1 has the text of image 0's "a", so caption 4 is not listed for image 0, nor 0 for image 1
    assert mined(tmp_path / "lists").negatives.captions.tolist() == [[2, 5], [3, 5], [1, 3]]
    assert "skipped_captions      3" in capsys.readouterr().out
    assert main(["mine", *files, *options, "--keep-duplicates", "--output", str(tmp_path / "all")]) == 0
    assert mined(tmp_path / "all").negatives.captions.tolist() == [[2, 4], [2, 3], [1, 3]]
    same = mine_hard_negatives(images, captions, owners, captions_per_image=2, normalize=True)
    assert same.captions.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_an_ensemble_has_a_row_for_each_run_and_the_mean(runs, tmp_path, capsys):
    assert main(["ensemble", str(runs / "a"), str(runs / "b"), "--json", str(tmp_path / "m.json")]) == 0
    rows = json.loads((tmp_path / "m.json").read_text())
    assert list(rows) == ["a, val", "b, val", "mean of 2, val"]
    alone = evaluate_checkpoint(runs / "a" / "config.yaml", runs / "a" / "checkpoint_best.pth")
    assert rows["a, val"] == alone.metrics
    assert "mean of 2, val" in capsys.readouterr().out
    assert main(["ensemble", str(runs / "a"), str(runs / "a"), "--json", str(tmp_path / "m.json")]) == 0
    rows = json.loads((tmp_path / "m.json").read_text())
    assert rows["mean of 2, val"] == alone.metrics


def test_mistakes_end_in_a_sentence(runs, tmp_path, refused, encoded):
    a, c = runs / "a", runs / "c"
    assert "give at least two run folders" in refused("ensemble", a)
    assert "has other captions in its val split than" in refused("ensemble", a, c)
    assert "give either a run folder, or --image-embeds" in refused("mine")
    images, captions = (
        ("--image-embeds", encoded / "image_embeds.npy"),
        ("--caption-embeds", encoded / "caption_embeds.npy"),
    )
    assert "give either a run folder, or --image-embeds" in refused("mine", a, *images)
    assert refused("mine", *images).startswith("--caption-embeds is missing")
    assert "x.npy does not exist" in refused("mine", *images, "--caption-embeds", "x.npy")
    np.save(tmp_path / "long.npy", 2 * np.load(encoded / "image_embeds.npy"))
    long = ("--image-embeds", tmp_path / "long.npy")
    assert "row 0 of image_embeds has length 2, not 1; normalize" in refused("mine", *long, *captions)
    np.save(tmp_path / "odd.npy", np.load(encoded / "caption_embeds.npy")[:-1])
    odd = ("--caption-embeds", tmp_path / "odd.npy")
    assert "119 captions are no whole number for each of 24 images" in refused("mine", *images, *odd)
    (tmp_path / "cut.npy").write_bytes((encoded / "image_embeds.npy").read_bytes()[:90])
    assert "cannot be read as a .npy array" in refused("mine", "--image-embeds", tmp_path / "cut.npy", *captions)
    (tmp_path / "t.json").write_text("{}")
    texts = ("--captions", tmp_path / "t.json")
    assert "holds no list of captions" in refused("mine", *images, *captions, *texts)
    assert "mine.captions_per_image: 0 is out of range" in refused("mine", a, "--captions-per-image", "0")
    assert "--memory-budget-mb is 0" in refused("mine", a, "--memory-budget-mb", "0")
    assert "cannot write" in refused("encode", a, "--output", encoded / "meta.json")
    assert "is no run folder" in refused("encode", tmp_path / "none")
