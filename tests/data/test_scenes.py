"""The generated data set: same seed same bytes, captions true of their pictures, relevance as defined."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis_itm_plugins.data.builders import ScenesBuilder
from lavis_itm_plugins.data.pictures import DecodedPictures
from lavis_itm_plugins.data.scenes import (
    Claims,
    Mention,
    Scene,
    SceneConfig,
    Thing,
    build_scenes,
    default_cache_root,
    load_scenes,
    relevance,
    relevance_matrix,
    store,
)
from lavis_itm_plugins.data.scenes import captions as grammar
from lavis_itm_plugins.data.scenes.captions import tokenize, write_captions
from lavis_itm_plugins.data.scenes.claims import Style, choose_claims
from lavis_itm_plugins.data.scenes.draw import COLOURS, draw_scene
from lavis_itm_plugins.data.scenes.shapes import SHAPES
from lavis_itm_plugins.data.scenes.world import BACKGROUNDS, KINDS, TEXTURES, sample_scene
from lavis_itm_plugins.errors import ItmError

SMALL = SceneConfig(train=30, val=6, test=12, seed=3, size=32)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_scenes(SMALL, tmp_path_factory.mktemp("cache"), progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_python(code: str, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(store.__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# ---- the cache ----


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


def test_karpathy_json_and_loader_agree(folder: Path) -> None:
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["dataset"] == "scenes"
    assert [image["imgid"] for image in dataset["images"]] == list(range(48))
    assert [s["sentid"] for image in dataset["images"] for s in image["sentences"]] == list(range(240))
    seen = []
    for split, count in {"train": 30, "val": 6, "test": 12}.items():
        loaded = load_scenes(folder, split)
        images = {image["imgid"]: image for image in dataset["images"] if image["split"] == split}
        assert loaded.image_ids.tolist() == list(images) and len(images) == count
        assert loaded.caption_image.tolist() == [row for row in range(count) for _ in range(5)]
        for caption, row in zip(loaded.captions, loaded.caption_image, strict=True):
            image = images[int(loaded.image_ids[row])]
            sentence = next(s for s in image["sentences"] if s["raw"] == caption)
            assert sentence["imgid"] == image["imgid"] and sentence["sentid"] in image["sentids"]
            assert sentence["tokens"] == tokenize(caption)
            assert loaded.image_paths[row] == folder / image["filepath"] / image["filename"]
        for path in loaded.image_paths:
            with Image.open(path) as picture:
                assert (picture.size, picture.mode) == ((32, 32), "RGB")
        seen += loaded.image_ids.tolist()
    assert len(set(seen)) == 48


def test_splits_are_disjoint() -> None:
    splits: dict[str, list[Scene]] = {"train": [], "val": [], "test": []}
    for split, scene in store._sample_splits(SceneConfig(1000, 1000, 1000), random.Random(0)):
        splits[split].append(scene)
    scenes = [scene for split in splits.values() for scene in split]
    assert len(set(scenes)) == 3000
    in_train, in_val, in_test = ({scene.content for scene in split} for split in splits.values())
    assert not in_train & in_val and not in_train & in_test and not in_val & in_test


def test_splits_are_alike_even_when_the_source_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(rng: random.Random) -> Iterator[list[Scene]]:
        for number in range(10_000):
            yield [Scene("day" if number < 600 else "night", (Thing(str(number), "red", "small", "plain"),))]

    monkeypatch.setattr(store, "families", drifting)
    scenes = store._sample_splits(SceneConfig(400, 400, 400), random.Random(0))
    for split in store.SPLITS:
        assert 0.4 < np.mean([scene.background == "day" for name, scene in scenes if name == split]) < 0.6


def test_a_split_has_twins() -> None:
    scenes = [scene for _, scene in store._sample_splits(SceneConfig(400, 1, 1), random.Random(0))]
    looks = Counter(frozenset(thing.looks for thing in scene.things) for scene in scenes if len(scene.groups()) > 1)
    assert sum(count > 1 for count in looks.values()) > 20


# ---- bad input ----


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


def test_the_vocabulary_needs_no_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = {"train": 5, "val": 1, "test": 1, "size": 32, "cache": str(tmp_path), "data_type": "images"}
    builder = ScenesBuilder(wanted)
    captions = load_scenes(builder.folder(), "train").captions
    monkeypatch.setattr(DecodedPictures, "from_files", None)
    assert builder.training_captions() == captions and len(captions) == 25


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


# ---- relevance ----

CAT = Thing("cat", "red", "small", "plain", column=0, row=0)
STAR = Thing("star", "blue", "large", "striped", column=1, row=1)
SCENE = Scene("night", (CAT, STAR))
TWO_CATS = Scene("night", (CAT, Thing("cat", "red", "small", "plain", column=1, row=0), STAR))


@pytest.mark.parametrize(
    ("scene", "claims", "expected"),
    [
        (SCENE, Claims((Mention("cat"),)), 1),
        (SCENE, Claims((Mention("car"),)), 0),
        (SCENE, Claims((Mention("cat", "red", "small", "plain"), Mention("star", "blue", "large", "striped"))), 1),
        (SCENE, Claims((Mention("cat", "blue"), Mention("star", "red"))), 4 / 6),
        (SCENE, Claims((Mention("cat", "red", "large", "dotted"),)), 3 / 5),
        (SCENE, Claims((Mention(colour="red"),)), 1),
        (SCENE, Claims((Mention("star"), Mention("cat"), Mention("cat"))), 4 / 6),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((0, "left", 1), (0, "above", 1))), 1),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((1, "right", 0), (1, "below", 0))), 1),
        (SCENE, Claims((Mention("cat"), Mention("star")), ((0, "right", 1),)), 4 / 5),
        (SCENE, Claims((Mention("cat"),), background="night"), 1),
        (SCENE, Claims((Mention("cat"),), background="day"), 2 / 3),
        (SCENE, Claims((Mention("cat"),), complete=True), 2 / 3),
        (SCENE, Claims((Mention("cat"), Mention("star")), complete=True), 1),
        (SCENE, Claims((Mention("cat", count=2),)), 2 / 5),
        (TWO_CATS, Claims((Mention("cat", count=2),)), 1),
        (TWO_CATS, Claims((Mention("cat", "red", count=2),), complete=True), 7 / 8),
        (TWO_CATS, Claims((Mention("cat"),)), 1),
        (TWO_CATS, Claims((Mention("cat"), Mention("star")), ((0, "left", 1),)), 1),
        (TWO_CATS, Claims((Mention("cat", count=2), Mention("star")), ((0, "left", 1),)), 8 / 9),
        (TWO_CATS, Claims((Mention("cat", count=2), Mention("star")), ((0, "above", 1),)), 1),
        (TWO_CATS, Claims((Mention(size="small", count=3),)), 2 / 4),
    ],
)
def test_relevance_by_hand(scene: Scene, claims: Claims, expected: float) -> None:
    assert relevance(scene, claims) == pytest.approx(expected, abs=1e-12)
    assert relevance_matrix([scene], [claims])[0, 0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_fast_relevance_equals_the_slow_one(seed: int, n_images: int, n_authors: int) -> None:
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(n_images)]
    authors = [*scenes, *(sample_scene(rng) for _ in range(n_authors))]
    claims = [claim for scene in authors for _, claim in write_captions(scene, rng)]
    slow = np.array([[relevance(scene, claim) for claim in claims] for scene in scenes])
    fast = relevance_matrix(scenes, claims)
    assert fast.dtype == np.float32 and fast.shape == (n_images, len(claims))
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    np.testing.assert_array_equal(fast == 1, slow == 1)
    assert fast.min() >= 0 and fast.max() <= 1


def test_relevance_of_nothing_is_empty() -> None:
    assert relevance_matrix([], [Claims((Mention("cat"),))]).shape == (0, 1)
    assert relevance_matrix([SCENE], []).shape == (1, 0)


def test_captions_are_true_of_their_pictures_and_of_some_others() -> None:
    rng = random.Random(5)
    scenes = [sample_scene(rng) for _ in range(300)]
    claims = [claim for scene in scenes for _, claim in write_captions(scene, rng)]
    matrix = relevance_matrix(scenes, claims)
    assert (matrix[np.arange(1500) // 5, np.arange(1500)] == 1).all()
    fitting = (matrix == 1).sum(axis=0)
    assert 0.2 < np.mean(fitting > 1) < 0.8 and fitting.mean() < 10


def test_nothing_else_is_said_only_where_all_is_mentioned() -> None:
    style = Style(groups=1, colour=1, size=1, texture=1, relation=0, background=1, complete=1)
    assert not choose_claims(SCENE, style, random.Random(0)).complete
    assert choose_claims(Scene("night", (CAT,)), style, random.Random(0)).complete


@given(seeds)
def test_graphs_and_claims_survive_json(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
    for _, claims in write_captions(scene, rng):
        assert Claims.from_json(json.loads(json.dumps(claims.to_json()))) == claims


# ---- captions ----

KIND_OF = {form: kind for kind, nouns in grammar.NOUNS.items() for noun in nouns for form in noun}
SIZE_OF = {word: size for size, words in grammar.SIZES.items() for word in words}
TEXTURE_OF = {
    **{word: texture for texture, words in grammar.TEXTURES.items() for word in words},
    **{"stripes": "striped", "dots": "dotted", "spots": "dotted"},
}
NOUN = re.compile(rf"\b({'|'.join(sorted(KIND_OF, key=len, reverse=True))})\b")
NOUN_OR_THING = re.compile(NOUN.pattern + r"|\bthings?\b|\bobjects?\b")
NUMBERS = {"two": 2, "pair of": 2, "couple of": 2, "three": 3, "four": 4}
RELATION_WORDS = {
    "left": ("left",),
    "right": ("right",),
    "above": ("above", "over", "higher"),
    "below": ("below", "under", "beneath", "lower"),
}


def captioned(seed: int) -> list[tuple[str, Claims]]:
    rng = random.Random(seed)
    return write_captions(sample_scene(rng), rng)


@given(seeds)
def test_captions_are_plain_english(seed: int) -> None:
    written = captioned(seed)
    assert len({text for text, _ in written}) == 5
    for text, _ in written:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)+", text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert not re.search(r"\bthere is (only |just )?(two|three|four|a couple)\b", text), text
        assert not re.search(r"\bthere are (only |just )?an? (?!couple)", text), text
        first = re.match(r"(a|an|two|three|four) [^,]*? (is|are|sits?|appears?|has|have) ", text)
        if first and not re.search(r" (with|and|couple) ", first.group()):
            several = first.group(1) in NUMBERS
            assert several == (first.group(2) in ("are", "sit", "appear", "have")), text


@given(seeds)
def test_captions_say_their_claims_and_no_more(seed: int) -> None:
    for text, claims in captioned(seed):
        words = text.split(" ")
        place = [name for name, places in grammar.BACKGROUNDS.items() if any(p in text for p in places)]
        assert place == [claims.background] * (claims.background is not None), text
        bare = re.sub("|".join(p for places in grammar.BACKGROUNDS.values() for p in places), "", text)
        bare = bare.split(", with the ")[0].split(", and the ")[0].split(", the ")[0].replace(",", "")
        expected = claims.mentions
        assert Counter(w for w in bare.split() if w in COLOURS) == Counter(m.colour for m in expected if m.colour)
        assert Counter(SIZE_OF[w] for w in bare.split() if w in SIZE_OF) == Counter(m.size for m in expected if m.size)
        textures = Counter(TEXTURE_OF[w] for w in bare.split() if w in TEXTURE_OF)
        assert textures == Counter(m.texture for m in expected if m.texture), text
        assert Counter(KIND_OF[n] for n in NOUN.findall(bare)) == Counter(m.kind for m in expected if m.kind), text
        assert claims.complete == any(w in words for w in ("only", "just", "nothing")), text


@given(seeds)
def test_numbers_and_plurals_agree_with_the_claims(seed: int) -> None:
    for text, claims in captioned(seed):
        found = re.findall(r"\b(two|pair of|couple of|three|four)\b", text)
        claimed = Counter(mention.count for mention in claims.mentions if mention.count > 1)
        assert Counter(NUMBERS[word] for word in found) == claimed, text
        for mention in claims.mentions:
            nouns = grammar.NOUNS[mention.kind] if mention.kind else grammar.ANYTHING
            assert any(re.search(rf"\b{noun[mention.count > 1]}\b", text) for noun in nouns), text


@given(seeds)
def test_relations_point_the_right_way(seed: int) -> None:
    for text, claims in captioned(seed):
        kinds = [mention.kind for mention in claims.mentions]
        if not claims.relations or len(set(kinds)) < 2:
            continue
        subject, _, other = claims.relations[0]
        tail = re.search(r", (?:with|and) the (.*)|, the (.* being .*)", text)
        told = (tail.group(1) or tail.group(2)) if tail else text
        bare = re.sub("|".join(p for places in grammar.BACKGROUNDS.values() for p in places), "", told)
        names = {name for name, words in RELATION_WORDS.items() if set(words) & set(bare.split())}
        assert names == {name for _, name, _ in claims.relations}, text
        order = [KIND_OF.get(found[0]) for found in NOUN_OR_THING.finditer(bare)]
        start = re.match(r"[, ]*(above|below|to the)\b", bare)
        # "a tree with a star above it" and "above a tree is a star" name the subject last
        subject_last = start or re.search(r"\b(it|them)\b", bare)
        assert order == ([kinds[other], kinds[subject]] if subject_last else [kinds[subject], kinds[other]]), text


# ---- pictures ----


def picture(*things: Thing, background: str = "day", seed: int = 0) -> npt.NDArray[np.int64]:
    return np.asarray(draw_scene(Scene(background, things), 64, random.Random(seed)), dtype=np.int64)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(("column", "row"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_things_stand_in_their_cell(column: int, row: int, background: str) -> None:
    empty = picture(background=background)
    for kind in KINDS:
        changed = np.abs(picture(Thing(kind, "red", "small", "plain", column, row), background=background) - empty)
        ys, xs = np.nonzero(changed.sum(axis=2) > 30)
        assert len(ys) > 30 and set(xs // 32) == {column} and set(ys // 32) == {row}, kind


def test_things_of_a_row_look_level() -> None:
    ball = Thing("circle", "red", "small", "plain", column=1, row=0)
    for seed in range(30):
        empty, drawn = picture(seed=seed), picture(ball, seed=seed)
        ys, xs = np.nonzero(np.abs(drawn - empty).sum(axis=2) > 30)
        assert abs(ys.mean() - 15.5) < 5.5 and abs(xs.mean() - 47.5) < 5.5


def test_looks_can_be_seen() -> None:
    assert set(SHAPES) == set(KINDS)
    empty = picture()
    for kind in KINDS:
        small, large = (picture(Thing(kind, "blue", size, "plain")) for size in ("small", "large"))
        areas = [(np.abs(drawn - empty).sum(axis=2) > 30).sum() for drawn in (small, large)]
        assert areas[1] > 2 * areas[0], kind
        textured = [picture(Thing(kind, "blue", "large", texture)) for texture in TEXTURES]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (np.abs(textured[one] - textured[other]).sum(axis=2) > 60).sum() > 25, kind


def test_colours_are_the_named_ones() -> None:
    for name, colour in COLOURS.items():
        drawn = picture(Thing("square", name, "large", "plain"))
        middle = drawn[14:18, 14:18].reshape(-1, 3).mean(axis=0)
        nearest = min(COLOURS, key=lambda other: np.abs(middle - COLOURS[other]).sum())
        assert nearest == name and np.abs(middle - colour).max() < 40


def test_kinds_differ_from_each_other() -> None:
    drawn = {kind: picture(Thing(kind, "green", "large", "plain")) for kind in KINDS}
    for one in KINDS:
        for other in KINDS:
            if one < other:
                assert (np.abs(drawn[one] - drawn[other]).sum(axis=2) > 60).sum() > 60, (one, other)
