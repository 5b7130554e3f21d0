"""Every annotation format is read as it is meant, with the splits that were asked for, and the same when rewritten."""

import csv
import json
import logging
import re
import sys
from pathlib import Path
from subprocess import run

import pytest
from data.annotation_files import write

from lavis_itm_plugins.data.annotation_formats import make_record
from lavis_itm_plugins.data.annotation_writers import WRITERS, write_annotations
from lavis_itm_plugins.data.annotations import AnnotatedImage, Annotations, read_annotations
from lavis_itm_plugins.errors import ItmError

# a ragged number of captions, with what breaks careless readers
DATA = {
    "train": [
        AnnotatedImage("a/1.jpg", "a/1.jpg", ("Two dogs, one ball.", 'She said "hi"')),
        AnnotatedImage("a/2.jpg", "a/2.jpg", ("ein Hündchen\u2028läuft",)),
    ],
    "val": [AnnotatedImage("3.jpg", "3.jpg", ("three", "more", "captions"))],
    "test": [AnnotatedImage("4.jpg", "4.jpg", ("the last",))],
}


def everything():
    return [(split, image) for split, images in DATA.items() for image in images]


def karpathy(folder):
    images = [
        {
            "filepath": str(Path(image.name).parent),
            "filename": Path(image.name).name,
            "split": "restval" if image.name == "a/2.jpg" else split,
            "sentences": [{"raw": caption, "tokens": []} for caption in image.captions],
        }
        for split, image in everything()
    ]
    return write(folder, "dataset.json", {"images": images, "dataset": "mine"})


def lavis(folder):
    train = [{"image": i.name, "image_id": i.name, "caption": c} for i in DATA["train"] for c in i.captions]
    files = {"train": write(folder, "train.json", train)}
    for split in ("val", "test"):
        entries = [{"image": image.name, "caption": list(image.captions)} for image in DATA[split]]
        files[split] = write(folder, f"{split}.json", entries)
    return files


def table(folder, delimiter=",", name="captions.csv"):
    with open(folder / name, "w", newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["split", "Image", "caption", "anything"])
        rows.writerows([split, image.name, caption, "x"] for split, image in everything() for caption in image.captions)
    return folder / name


def tabs(folder):
    return table(folder, "\t", "captions.tsv")


def jsonl(folder):
    lines = [
        json.dumps({"image": f"./{image.name}", "caption": caption, "split": {"val": "dev"}.get(split, split)})
        for split, image in everything()
        for caption in image.captions
    ]
    return write(folder, "captions.jsonl", "\n\n".join(lines))


@pytest.mark.parametrize("form", [karpathy, lavis, table, tabs, jsonl])
def test_all_formats_say_the_same(form, tmp_path):
    found = read_annotations(form(tmp_path))
    assert found.splits == DATA
    assert found.root == tmp_path
    assert found.files("val") == [tmp_path / "3.jpg"]
    assert found.in_several_splits() == []


def test_a_folder_of_images_and_text_files(tmp_path):
    for split, image in everything():
        write(tmp_path, f"{split}/{image.name}", b"")
        write(tmp_path, f"{split}/{Path(image.name).with_suffix('.txt')}", "\n".join([*image.captions, "", ""]))
    found = read_annotations(tmp_path)
    assert list(found.splits) == ["train", "val", "test"]
    assert [image.captions for image in found.splits["train"]] == [image.captions for image in DATA["train"]]
    assert found.files("test") == [tmp_path / "test" / "4.jpg"]


def test_a_folder_beside_the_split_folders_makes_all_of_it_training_data(tmp_path):
    for name in ("train/1", "tram/2"):
        write(tmp_path, f"{name}.png", b"")
        write(tmp_path, f"{name}.txt", "a picture")
    assert list(read_annotations(tmp_path).splits) == ["train"]


def test_one_split_of_a_file_that_names_several(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        found = read_annotations({"val": str(karpathy(tmp_path))})
    assert found.splits == {"val": DATA["val"]}
    assert "3 entries of other splits left out" in caplog.text


def test_without_splits_all_is_training_data_and_the_log_says_so(tmp_path, caplog):
    path = write(tmp_path, "c.csv", "image,caption\na.jpg,one\nb.jpg,two\na.jpg,three\n")
    with caplog.at_level(logging.INFO):
        found = read_annotations(path, images=tmp_path / "photos")
    images = [AnnotatedImage("a.jpg", "a.jpg", ("one", "three")), AnnotatedImage("b.jpg", "b.jpg", ("two",))]
    assert found.splits == {"train": images} and found.root == tmp_path / "photos"
    assert "names no splits: all of it is training data" in caplog.text


def test_an_image_in_two_splits_is_told(tmp_path):
    train = write(tmp_path, "t.json", [{"image": "a.jpg", "image_id": 7, "caption": "x"}])
    val = write(tmp_path, "v.json", [{"image": "a.jpg", "caption": ["y"]}])
    found = read_annotations({"train": train, "val": val})
    assert found.in_several_splits() == ["a.jpg"]
    assert found.splits["val"][0].image_id == "7"


@pytest.mark.parametrize(("given", "read"), [(0, "0"), ("0", "0"), ("", None), (None, None)])
def test_the_id_0_is_an_id(given, read):
    assert make_record("here", "a.jpg", "x", image_id=given).image_id == read


def test_a_caption_of_ten_thousand_words_is_read(tmp_path):
    caption = "word " * 10_000
    path = write(tmp_path, "a.csv", f"image,caption\na.jpg,{caption}\n")
    assert read_annotations(path).splits["train"][0].captions == (caption,)


@pytest.mark.parametrize("format", WRITERS)
def test_writing_and_reading_again_gives_the_same(format, tmp_path):
    images = [
        AnnotatedImage("a b/1.jpg", "id-1", ("  spaces ", "two\nlines\r\nor three", 'a "quote", a comma;\ta tab')),
        AnnotatedImage("2.jpg", "2.jpg", ("\u2028 ünï \U0001f600",)),
    ]
    data = Annotations(tmp_path, {"train": images, "test": [AnnotatedImage("4.jpg", "x", ("the last", "the last"))]})
    written = write_annotations(data, format, tmp_path / ("out" if format == "lavis" else f"out.{format}"))
    source = {path.stem: path for path in written} if format == "lavis" else written[0]
    assert read_annotations(source, images=tmp_path, format=format).splits == data.splits
    with pytest.raises(ItmError, match="exists; remove it"):
        write_annotations(data, format, tmp_path / ("out" if format == "lavis" else f"out.{format}"))


def test_karpathy_output_is_what_the_fields_code_reads(tmp_path):
    [path] = write_annotations(Annotations(tmp_path, DATA), "karpathy", tmp_path / "k.json")
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    assert [image["imgid"] for image in images] == [0, 1, 2, 3]
    assert [number for image in images for number in image["sentids"]] == list(range(7))
    assert images[0]["sentences"][0]["tokens"] == ["two", "dogs", "one", "ball"]


def test_reading_imports_neither_torch_nor_numpy():
    script = "import sys, lavis_itm_plugins.data.annotations; print({'torch', 'numpy', 'lavis'} & set(sys.modules))"
    assert run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_examples_in_the_docs_are_read(tmp_path):
    blocks = re.findall(r"^```(csv|jsonl|json)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert [kind for kind, _ in blocks] == ["csv", "jsonl", "json", "json"]
    for number, (kind, text) in enumerate(blocks):
        found = read_annotations(write(tmp_path, f"{number}.{kind}", text))
        assert "photos/beach.jpg" in [image.name for image in found.splits["train"]]
