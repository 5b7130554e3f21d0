"""Every annotation format, what is refused in each, and writing them again."""

import csv
import json
import logging
import re
import sys
from pathlib import Path
from subprocess import run

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.annotation_formats import READERS, make_record
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


def write(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


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


LAVIS = '[{"image": "a.jpg", "caption": %s}]'
BAD = {
    "no JSON": ("a.json", '{"images": [', r"a\.json is not valid JSON .*mend"),
    "nested too deep": ("a.json", "[" * 100_000, r"a\.json is not valid JSON"),
    "empty file": ("a.json", "", r"a\.json is not valid JSON"),
    "no images": ("a.json", {"pictures": []}, r"a\.json is not in Karpathy's form"),
    "images no list": ("a.json", {"images": {"a": 1}}, r"a\.json is not in Karpathy's form"),
    "image no entry": ("a.json", {"images": ["a.jpg"]}, r"images\[0\]: expected an image's entry, got 'a.jpg'"),
    "no sentences": ("a.json", {"images": [{"filename": "a"}]}, r"images\[0\]: sentences is None"),
    "no raw": ("a.json", {"images": [{"filename": "a", "sentences": [{}]}]}, r"a caption is None; give text"),
    "no file name": ("a.json", {"images": [{"filename": 3, "sentences": []}]}, r"images\[0\]: .*filename 3; give text"),
    "entry no object": ("a.json", [3], r"entry 0: expected .*, got 3"),
    "no caption key": ("a.json", [{"image": "a", "text": "b"}], r"entry 0: image and caption are needed, .*'text'"),
    "caption a number": ("a.json", LAVIS % "17", r"entry 0: a caption is 17; give text"),
    "caption in a list a number": ("a.json", LAVIS % '["x", null]', r"entry 0: a caption is None; give text"),
    "no captions": ("a.json", LAVIS % "[]", r"entry 0: a.jpg has no captions; give at least one"),
    "no words": ("a.json", LAVIS % '" ... "', r"entry 0: caption ' ... ' has no words"),
    "half a character": ("a.json", LAVIS % r'"ab\ud800"', r"entry 0: .* holds half a character"),
    "image a number": ("a.jsonl", '{"image": 3, "caption": "x"}', r"line 1: image is 3"),
    "image empty": ("a.jsonl", '\n{"image": " ", "caption": "x"}', r"line 2: image is ' '"),
    "image id a list": ("a.jsonl", {"image": "a", "caption": "x", "image_id": [1]}, r"image_id is \[1\]"),
    "split unknown": (
        "a.jsonl",
        {"image": "a", "caption": "x", "split": "trian"},
        r'split "trian"; did you mean train',
    ),
    "split a number": ("a.jsonl", {"image": "a", "caption": "x", "split": 1}, r"unknown split"),
    "split a list": ("a.jsonl", {"image": "a", "caption": "x", "split": []}, r"unknown split"),
    "line no JSON": ("a.jsonl", '{"image": "a", "caption": "x"}\nnonsense', r"line 2 is not valid JSON"),
    "latin-1": ("a.csv", "image,caption\na.jpg,H\xfcndchen".encode("latin-1"), r"a\.csv is not UTF-8 \(byte 21\)"),
    "no header": ("a.csv", "a.jpg,a dog\n", r"a\.csv: the header \['a.jpg', 'a dog'\] has no one column 'image'"),
    "empty csv": ("a.csv", "", r"the header \[\] has no one column 'image'"),
    "only a header": ("a.csv", "image,caption\n", r"a\.csv has no usable entry"),
    "comma unquoted": ("a.csv", "image,caption\na.jpg,a dog, a cat\n", r"line 2: 3 values for 2 columns; put captions"),
    "quote left open": ("a.csv", 'image,caption\na.jpg,"a dog\nb.jpg,x\n', r"a\.csv, line 3: .*mend the quotes"),
    "split now and then": (
        "a.csv",
        "image,caption,split\na,b,train\nc,d,\n",
        r"line 3: no split, though other entries",
    ),
    "id of two files": (
        "a.csv",
        "image,caption,image_id\na,x,1\nb,y,1\n",
        r"line 3: image id 1 goes with b, but with a in",
    ),
    "file of two ids": (
        "a.csv",
        "image,caption,image_id\na,x,1\na,y,2\n",
        r"line 3: image file a goes with 2, but with 1",
    ),
    "unknown ending": ("a.xml", "", r"a\.xml: its format cannot be told from its name; set format to one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, tmp_path):
    file, content, message = BAD[name]
    path = write(tmp_path, file, content)
    with pytest.raises(ItmError, match=message) as caught:
        read_annotations(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_bad_ways_to_ask_are_one_sentence(tmp_path):
    path = write(tmp_path, "a.csv", "image,caption\na.jpg,one\n")
    other = write(tmp_path, "b/b.csv", "image,caption,split\nb.jpg,two,test\n")
    with pytest.raises(ItmError, match=r"no\.csv does not exist; check its path"):
        read_annotations(tmp_path / "no.csv")
    with pytest.raises(ItmError, match=r'unknown annotation format "karpaty"; did you mean karpathy\?'):
        read_annotations(path, format="karpaty")
    with pytest.raises(ItmError, match=r'unknown split "trian"; did you mean train\?'):
        read_annotations({"trian": path})
    with pytest.raises(ItmError, match=r"the val split is empty: .*b\.csv has no entry for it"):
        read_annotations({"train": path, "val": other}, images=tmp_path)
    with pytest.raises(ItmError, match=r"annotation files lie in 2 folders; set images"):
        read_annotations({"train": path, "test": other})
    with pytest.raises(ItmError, match=r"cannot read .*: Is a directory"):
        read_annotations(tmp_path, format="csv")
    with pytest.raises(ItmError, match=r"a\.csv is no folder"):
        read_annotations(path, format="folder")


def test_a_folder_with_an_image_or_a_text_left_over(tmp_path):
    write(tmp_path, "1.jpg", b"")
    with pytest.raises(ItmError, match=r"1\.txt does not exist; write the captions of 1\.jpg there"):
        read_annotations(tmp_path)
    write(tmp_path, "1.txt", "\n \n")
    with pytest.raises(ItmError, match=r"1\.txt: 1\.jpg has no captions"):
        read_annotations(tmp_path)
    write(tmp_path, "2.txt", "a dog")
    with pytest.raises(ItmError, match=r"2\.txt has no image of the same name"):
        read_annotations(tmp_path)


def test_all_faulty_entries_are_reported_when_asked(tmp_path):
    lines = ['{"image": "a", "caption": "x"}', "junk", '{"image": "b"}', '{"image": "c", "caption": ""}', "3"]
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    errors = []
    found = read_annotations(path, report=errors.append)
    assert [image.name for image in found.splits["train"]] == ["a"]
    assert [str(error).split(":")[0].rpartition(" ")[2] for error in errors if ", line" in str(error)][1:] == [
        "3",
        "4",
        "5",
    ]
    assert len(errors) == 4


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
    chosen = "csv" if format == "csv" else format
    assert read_annotations(source, images=tmp_path, format=chosen).splits == data.splits
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


TEXT = st.text(max_size=8) | st.sampled_from(["train", "a.jpg", "a dog", "\ud800", "\0"])
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
KEYS = st.sampled_from(
    ["images", "image", "caption", "captions", "split", "image_id", "filename", "filepath", "sentences", "raw"]
)
JUNK = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXT, inner, max_size=5))
SENTENCES = st.lists(st.fixed_dictionaries({"raw": JUNK}), max_size=2)
IMAGE = {"filename": TEXT, "split": LEAF, "sentences": SENTENCES | JUNK}
ENTRY = st.fixed_dictionaries({"image": TEXT, "caption": JUNK}, optional={"split": LEAF, "image_id": JUNK})
NEARLY = (
    JUNK
    | st.lists(ENTRY, max_size=3)
    | st.fixed_dictionaries({"images": st.lists(st.fixed_dictionaries(IMAGE) | JUNK)})
)


def read_or_refuse(path, format):
    try:
        found = read_annotations(path, format=format)
    except ItmError:
        return
    assert all(image.captions and image.name for images in found.splits.values() for image in images)


@pytest.mark.parametrize(("given", "read"), [(0, "0"), ("0", "0"), ("", None), (None, None)])
def test_the_id_0_is_an_id(given, read):
    assert make_record("here", "a.jpg", "x", image_id=given).image_id == read


@settings(max_examples=200, deadline=None)
@given(content=NEARLY, format=st.sampled_from(["karpathy", "lavis", "jsonl", None]))
def test_junk_json_is_read_or_refused(content, format, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    lines = content if isinstance(content, list) and format == "jsonl" else [content]
    read_or_refuse(write(folder, "junk.json", "\n".join(json.dumps(line) for line in lines)), format)


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=60) | st.text(alphabet=',"\n\r\tab ', max_size=60).map(lambda s: f"image,caption\n{s}"),
    format=st.sampled_from([name for name in READERS if name != "folder"]),
)
def test_junk_bytes_are_read_or_refused(content, format, tmp_path_factory):
    read_or_refuse(write(tmp_path_factory.getbasetemp(), "junk", content), format)


DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_examples_in_the_docs_are_read(tmp_path):
    blocks = re.findall(r"^```(csv|jsonl|json)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert [kind for kind, _ in blocks] == ["csv", "jsonl", "json", "json"]
    for number, (kind, text) in enumerate(blocks):
        found = read_annotations(write(tmp_path, f"{number}.{kind}", text))
        assert "photos/beach.jpg" in [image.name for image in found.splits["train"]]
