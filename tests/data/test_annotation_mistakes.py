"""Annotations that cannot be used are refused in one sentence that says where and why; no content ends otherwise."""

import json
import re

import pytest
from data.annotation_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.annotation_formats import READERS
from lavis_itm_plugins.data.annotations import read_annotations
from lavis_itm_plugins.errors import ItmError

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


@pytest.mark.parametrize("path", ["nowhere/x", "nowhere/x.csv", "nowhere/x.json", "~nobody-of-this-name/x.json"])
def test_a_path_that_is_not_there_is_said_as_it_was_given(path):
    with pytest.raises(ItmError, match=f"^{path} does not exist; check its path$"):
        read_annotations(path)


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
    assert [re.search(r", line (\d)\b", str(error)).group(1) for error in errors] == ["2", "3", "4", "5"]


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
