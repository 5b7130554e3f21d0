"""`itm_pairs`: pictures of one's own from file to trained model, and LAVIS's own builders beside it."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.builders_pairs import PairsBuilder
from lavis_itm_plugins.data.datasets import CaptionEvalDataset
from lavis_itm_plugins.data.pictures import PictureFiles, open_picture
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.runners.loaders import make_loader
from lavis_itm_plugins.train import run_training
from tests.pictures import captions_of, metrics_of, pixels_project, write_jsonl, write_lavis
from tests.tiny import write_project


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The annotation file of 20 pictures: 12 train, 4 val, 4 test."""
    return write_jsonl(tmp_path_factory.mktemp("pairs"))


def build(folder, **section):
    """The datasets of an `itm_pairs` section."""
    path = write_project(folder / "project.yaml", pixels_project({"itm_pairs": section}, folder))
    return PairsBuilder(ProjectConfig(path).datasets_cfg.itm_pairs).build_datasets()


@pytest.fixture
def train(pairs, tmp_path):
    return build(tmp_path, annotations=str(pairs), image_size=32)["train"]


def test_items_are_what_matchers_read(pairs, tmp_path):
    datasets = build(tmp_path, annotations=str(pairs), image_size=32)
    train, val = datasets["train"], datasets["val"]
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 24, "val": 4, "test": 4}
    item = train[3]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.float32
    assert (item["text_input"], int(item["image_id"]), item["instance_id"]) == (captions_of(1)[1], 1, "3")
    assert train.image_ids.tolist() == [row for row in range(12) for _ in range(2)]
    assert val.image == [f"images/{number:02}.png" for number in (3, 8, 13, 18)]
    assert val.text == [caption for number in (3, 8, 13, 18) for caption in captions_of(number)]
    assert val.img2txt[2] == [4, 5] and val.txt2img[5] == 2


def test_processors_are_lavis_own_and_share_the_image_size(pairs, tmp_path):
    datasets = build(tmp_path, annotations=str(pairs))
    assert datasets["train"][0]["image"].shape == datasets["val"][0]["image"].shape == (3, 224, 224)
    expected = registered("processor")["blip_image_eval"](image_size=224)
    picture = Image.open(pairs.parent / "images" / "03.png").convert("RGB")
    assert torch.equal(datasets["val"][0]["image"], expected(picture))
    processors = {"train": {"name": "blip_image_train", "image_size": 48}, "eval": {"image_size": 48}}
    text = {"eval": {"name": "blip_caption", "prompt": "see ", "max_words": 2}}
    changed = build(tmp_path, annotations=str(pairs), vis_processor=processors, text_processor=text)
    assert changed["train"][0]["image"].shape == changed["val"][0]["image"].shape == (3, 48, 48)
    assert changed["val"].text[0] == "see a grey" and changed["train"][0]["text_input"] == captions_of(0)[0]


def test_an_augmented_picture_is_a_function_of_seed_epoch_and_caption(train):
    order = [[0, 5, 9], [23, 1]]
    alone = {row: train[row]["image"] for batch in order for row in batch}
    for workers in (0, 2):
        random.random(), np.random.random(), torch.rand(1)
        for rows, batch in zip(order, make_loader(train, order, workers=workers, seed=workers, pin=False), strict=True):
            for row, image in zip(rows, batch["image"], strict=True):
                assert torch.equal(image, alone[row])
    assert not torch.equal(train[0]["image"], train[1]["image"])  # two captions of one picture: two crops
    train.set_epoch(1)
    assert not torch.equal(train[0]["image"], alone[0])
    train.set_epoch(0)
    train.seed += 1
    assert not torch.equal(train[0]["image"], alone[0])


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_augmentation_by_any_generator_is_keyed_and_leaves_the_others_alone(draw, pairs):
    files = sorted((pairs.parent / "images").iterdir())
    source = PictureFiles(files, lambda picture: torch.zeros(1), lambda picture: torch.tensor([draw()]))
    draw()
    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    first = source.fetch_augmented(np.array([0, 1]), [(3, 0, 7), (3, 0, 8)])
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[2]
    assert torch.equal(before[2], torch.get_rng_state())
    assert torch.equal(source.fetch_augmented(np.array([5]), [(3, 0, 8)]), first[1:])
    assert len({float(value) for value in first}) == 2
    assert not source.fetch(np.array([0, 1])).any()


def test_ranking_the_training_pictures_uses_the_evaluation_processor(train, pairs):
    view = CaptionEvalDataset(train.split)
    expected = registered("processor")["blip_image_eval"](image_size=32)
    assert torch.equal(view[0]["image"], expected(open_picture(pairs.parent / "images" / "00.png")))


def test_the_vocabulary_comes_from_training_captions_alone(pairs, tmp_path):
    path = write_project(tmp_path / "p.yaml", pixels_project({"itm_pairs": {"annotations": str(pairs)}}, tmp_path))
    captions = PairsBuilder(ProjectConfig(path).datasets_cfg.itm_pairs).training_captions()
    assert len(captions) == 24 and captions[:2] == captions_of(0)


def test_missing_pictures_are_told_before_training(pairs, tmp_path):
    lines = [json.dumps({"image": name, "caption": "a dog"}) for name in ("images/00.png", "no.png", "none.png")]
    path = pairs.parent / "missing.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ItmError, match=r"^2 of 3 train images do not exist, first .*/no\.png; set .*images") as caught:
        build(tmp_path, annotations=str(path))
    assert "\n" not in str(caught.value)


def broken(folder, name):
    """A file of pictures' bytes gone wrong."""
    path = folder / f"{name}.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    whole = path.read_bytes()
    changed = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no picture", "zeros": bytes(500)}
    path.write_bytes(changed[name])
    return path


@pytest.mark.parametrize("name", ["truncated", "empty", "text", "zeros"])
def test_an_undecodable_picture_is_named(name, tmp_path):
    path = broken(tmp_path, name)
    with pytest.raises(ItmError, match=rf"^image {path} cannot be decoded \(.+\); replace or remove it$") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # LAVIS's own data sets go on as LAVIS wants


@pytest.mark.parametrize("side", [12, 40])  # 144 pixels: where Pillow warns; 1600: where it refuses
def test_an_image_bomb_is_refused(side, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "bomb.png"
    Image.new("RGB", (side, side)).save(path)
    with pytest.raises(
        ItmError, match=r"^image .*bomb\.png is larger than Pillow's safe limit \(.+\); make it smaller$"
    ):
        open_picture(path)


def test_any_kind_of_picture_becomes_upright_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture = Image.new("RGB", (4, 2), "red")
    picture.putpixel((0, 0), (0, 0, 255))
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = open_picture(tmp_path / "turned.png")
    assert turned.size == (2, 4) and turned.getpixel((1, 0)) == (0, 0, 255)
    picture.save(tmp_path / "junk.jpg", exif=b"Exif\0\0junk")
    assert open_picture(tmp_path / "junk.jpg").size == (4, 2)
    for mode in ("L", "LA", "P", "RGBA", "1", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        picture.convert(mode).save(path)
        assert open_picture(path).mode == "RGB"


def test_a_worker_says_what_the_main_process_says(tmp_path):
    path = broken(tmp_path, "truncated")
    annotations = tmp_path / "one.jsonl"
    annotations.write_text(json.dumps({"image": path.name, "caption": "a dog"}))
    dataset = build(tmp_path, annotations=str(annotations), image_size=32)["train"]
    with pytest.raises(ItmError) as caught:
        next(iter(make_loader(dataset, [[0]], workers=1, seed=0, pin=False)))
    assert str(caught.value).startswith(f"image {path} cannot be decoded (") and "\n" not in str(caught.value)


BAD = {
    "no annotations": ({}, r"p\.yaml: datasets\.itm_pairs\.annotations: missing; set it to an annotation file"),
    "number": ({"annotations": 3}, r"itm_pairs\.annotations: expected text, got 3"),
    "split": (
        {"annotations": {"trian": "a.csv"}},
        r'itm_pairs: annotations: unknown split "trian"; did you mean train',
    ),
    "file": ({"annotations": {"train": None}}, r"itm_pairs: annotations\.train is None; give a file"),
    "format": ({"annotations": "a.csv", "format": "xml"}, r'itm_pairs\.format: unknown choice "xml"; choose from: csv'),
    "key": ({"annotations": "a.csv", "image": "x"}, r"itm_pairs\.image: unknown key; did you mean images"),
    "stage": ({"annotations": "a", "vis_processor": {"test": {}}}, r'vis_processor\.test: unknown stage "test"'),
    "no name": ({"annotations": "a", "text_processor": {"train": {}}}, r"text_processor\.train\.name: missing; choose"),
    "unknown": (
        {"annotations": "a", "vis_processor": {"train": {"name": "blip_image_tran"}}},
        r'vis_processor\.train\.name: unknown processor "blip_image_tran"; did you mean blip_image_train',
    ),
    "null": ({"annotations": "a", "vis_processor": {"eval": None}}, r"vis_processor\.eval: missing; name a processor"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_the_section_is_told_before_data_are_read(name, tmp_path):
    section, message = BAD[name]
    with pytest.raises(ItmError, match=message):
        ProjectConfig(write_project(tmp_path / "p.yaml", pixels_project({"itm_pairs": section}, tmp_path)))


def test_one_epoch_from_file_to_checkpoint(tmp_path, caplog):
    annotations = write_jsonl(tmp_path)
    entries = [json.loads(line) for line in annotations.read_text().splitlines()]
    entries[0]["captions"].append("red word " * 5_000)  # 10,000 words: the encoder cuts
    entries.append({**entries[0], "split": "val"})
    annotations.write_text("\n".join(json.dumps(entry) for entry in entries))
    section = {"itm_pairs": {"annotations": str(annotations), "image_size": 32}}
    project = write_project(tmp_path / "p.yaml", pixels_project(section, tmp_path))
    with caplog.at_level(logging.WARNING):
        runner = run_training(project)
    assert "1 images are in more than one split, first images/00.png" in caplog.text
    train, val, test = metrics_of(tmp_path / "run")
    assert (train["split"], val["split"], test["split"]) == ("train", "val", "test")
    assert np.isfinite(train["loss"]) and test["rsum"] > 0
    again = evaluate_checkpoint(runner.folder.config, runner.folder.best)
    assert again.metrics["rsum"] == test["rsum"] and (again.n_images, again.n_captions) == (4, 8)


@pytest.mark.parametrize("builder", ["flickr30k", "coco_retrieval"])
def test_lavis_own_builders_train_unchanged(builder, tmp_path):
    processor = {"name": "clip_image_eval", "image_size": 32}
    section = {
        "data_type": "images",
        "build_info": write_lavis(tmp_path),
        "vis_processor": {"train": {**processor, "name": "blip_image_train"}, "eval": processor},
        "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
    }
    runner = run_training(write_project(tmp_path / "p.yaml", pixels_project({builder: section}, tmp_path)))
    assert [line["split"] for line in metrics_of(tmp_path / "run")] == ["train", "val", "test"]
    assert "square" in runner._model.vocabulary.words


def test_annotations_that_cannot_be_fetched_are_told_in_one_sentence(tmp_path):
    nobody = {"url": "http://127.0.0.1:9/train.json", "storage": str(tmp_path / "train.json")}
    section = {"data_type": "images", "build_info": {"annotations": {"train": nobody}, "images": {"storage": "x"}}}
    content = pixels_project({"flickr30k": section}, tmp_path)
    with pytest.raises(ItmError, match=r"annotations of flickr30k cannot be fetched \(.*refused.*give url and storage"):
        run_training(write_project(tmp_path / "p.yaml", content))


def test_coco_photographs_train(shared, tmp_path):
    coco = shared / "data" / "coco_mini"
    section = {"annotations": str(coco / "dataset_coco_mini.json"), "images": str(coco / "images"), "image_size": 64}
    project = pixels_project({"itm_pairs": section}, tmp_path, batch_size_train=64, valid_splits=[])
    run_training(write_project(tmp_path / "p.yaml", project))
    train, test = metrics_of(tmp_path / "run")
    assert np.isfinite(train["loss"]) and 0 < test["txt_r10"] < 60
