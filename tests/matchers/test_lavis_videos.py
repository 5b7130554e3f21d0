"""LAVIS's `msrvtt_retrieval` on small videos that are made here: every frame through the image tower."""

import json
from types import SimpleNamespace

import cv2
import lavis_tiny
import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from runners.compare import assert_same_runs
from torch.nn.functional import normalize

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.data.videos import VideoItems
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.registry import registered

FRAMES = 4
COLOURS = {"red": (40, 40, 230), "green": (40, 220, 60), "blue": (230, 60, 40), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve videos of 3 to 14 frames, the shortest too short; annotations in LAVIS's form; a vocabulary."""
    folder = tmp_path_factory.mktemp("videos")
    lavis_tiny.write_words(folder)
    parts = {"train": [], "val": [], "test": []}
    for number in range(12):
        colour = list(COLOURS)[number % 4]
        name, captions = f"{number}.avi", [f"a {colour} ball", f"the {colour} ring on the left"]
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*"MJPG"), 8, (48, 40))
        rng = np.random.default_rng(number)
        for _ in range(3 + number):
            frame = np.clip(rng.normal(COLOURS[colour], 20, (40, 48, 3)), 0, 255)
            writer.write(frame.astype(np.uint8))
        writer.release()
        split = ("train", "train", "val", "test")[number // 3]
        rows = [{"video": name, "caption": caption} for caption in captions]
        parts[split] += rows if split == "train" else [{"video": name, "caption": captions}]
    for split, rows in parts.items():
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


def section(folder, **frames):
    """The data set's section, with files in place of URLs."""
    files = {split: str(folder / f"{split}.json") for split in ("train", "val", "test")}
    size = {"image_size": lavis_tiny.SIZE, **(frames or {"n_frms": FRAMES})}
    return {
        "vis_processor": {"train": {"name": "alpro_video_train", **size}, "eval": {"name": "alpro_video_eval", **size}},
        "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
        "build_info": {
            "annotations": {split: {"url": file, "storage": file} for split, file in files.items()},
            "videos": {"storage": str(folder)},
        },
    }


def project(folder, name, model, **run):
    content = lavis_tiny.project(model, folder, name, batch_size_train=4, test_splits=["test"], **run)
    content["datasets"] = {"msrvtt_retrieval": section(folder)}
    return content


def train(folder, content, *arguments):
    return main(["train", "--cfg-path", str(tiny.write_project(folder / "project.yaml", content)), *arguments])


@pytest.mark.parametrize(
    "network", [*(pytest.param(network, marks=pytest.mark.full) for network in ("clip", "blip")), "albef"]
)
def test_a_network_trains_on_videos_and_is_scored(network, folder, monkeypatch):
    """With LAVIS's losses, under DBL: momentum towers and queues, chunks, re-ranking; a repeat is equal to the bit."""
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(folder))
    objective = {"objective": "itc"} if network == "clip" else {"objective": "itc_itm", "encode_chunk": 3}
    matcher = lavis_tiny.section(network, folder / "vocab.txt", **objective)
    model = {"arch": "itm_dbl", "model_type": "momentum", "matcher": matcher, "base_loss": {"name": "infonce"}}
    for name in (network, f"{network}_again"):
        assert train(folder, project(folder, name, model, k_test=2)) == 0
    assert_same_runs(folder / "runs" / f"{network}_again", folder / "runs" / network)
    lines = (folder / "runs" / network / "metrics.jsonl").read_text()
    assert "NaN" not in lines and ('"itm_rsum"' in lines) == (network != "clip")
    assert main(["evaluate", str(folder / "runs" / network), "--split", "val"]) == 0


def test_labels_of_video_captions(folder, monkeypatch):
    """BCLS asks for the captions by row."""
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(folder))
    matcher = lavis_tiny.section("clip", folder / "vocab.txt")
    labels = {"model_type": "cider", "labels": {"cache": str(folder)}, "kendall": {"window": 3, "stride": 2}}
    assert train(folder, project(folder, "bcls", {"arch": "itm_bcls", "matcher": matcher, **labels})) == 0


def test_every_item_has_the_frames_that_were_asked_for(folder):
    config = OmegaConf.create({**section(folder), "data_type": "videos"})
    train = VideoItems(registered("builder")["msrvtt_retrieval"](config).build_datasets()["train"])
    assert len(train) == 12 and train.annotation[0]["video"] == "0.avi"
    # LAVIS's own items: three frames of a video of three, and the first half never without its last
    assert train.videos[0]["video"].shape[1] < FRAMES
    assert {tuple(train[row]["image"].shape) for row in range(12)} == {(3, FRAMES, lavis_tiny.SIZE, lavis_tiny.SIZE)}
    assert train[3]["instance_id"] == "3" and train[3]["image_id"] == train[2]["image_id"]
    without = OmegaConf.create({**section(folder, min_scale=0.9), "data_type": "videos"})
    with pytest.raises(ItmError, match=r"no fixed number of frames; give the data set a vis_processor such as"):
        VideoItems(registered("builder")["msrvtt_retrieval"](without).build_datasets()["train"])


def test_lavis_own_video_network_gets_lavis_own_items(folder):
    """`alpro_retrieval` under our task reads `video`."""
    keys = {}
    for arch in ("alpro_retrieval", "itm_clip"):
        data = OmegaConf.create({"msrvtt_retrieval": {**section(folder), "data_type": "videos"}})
        config = SimpleNamespace(datasets_cfg=data, model_cfg=OmegaConf.create({"arch": arch}))
        task = registered("task")["itm_retrieval"](OmegaConf.create({"evaluate": False}))
        keys[arch] = {
            key for split in ("train", "val") for key in task.build_datasets(config)["msrvtt_retrieval"][split][0]
        }
    assert "image" not in keys["alpro_retrieval"] and "video" in keys["alpro_retrieval"]
    assert "image" in keys["itm_clip"] and "video" not in keys["itm_clip"]


@pytest.fixture
def make(folder):
    def build(network, **keys):
        torch.manual_seed(1)
        own = OmegaConf.create(lavis_tiny.section(network, folder / "vocab.txt", **keys))
        return registered("model")[f"itm_{network}"].from_config(own).eval()

    return build


@torch.no_grad()
def test_a_video_is_the_mean_of_its_frames(make):
    """CLIP: of unit vectors; BLIP and ALBEF: of projections, as BLIP's authors do. A still video is its picture."""
    clips = torch.rand(2, 3, FRAMES, lavis_tiny.SIZE, lavis_tiny.SIZE)
    still = clips[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    for network in ("clip", "blip", "albef"):
        model = make(network, objective="itc")
        found = model.encode_images({"image": clips}).pooled
        if network == "clip":
            frames = [normalize(model.network.encode_image(clips[:, :, t]), dim=-1) for t in range(FRAMES)]
        else:
            vit, project = model.network.visual_encoder, model.network.vision_proj
            frames = [project(vit.forward_features(clips[:, :, t])[:, 0]) for t in range(FRAMES)]
            states = model.image_states({"image": clips})
            assert torch.allclose(states[:, 5:10], vit.forward_features(clips[:, :, 1]), atol=1e-5)
            twin = model.momentum_twin().encode_images({"image": clips}).pooled
            torch.testing.assert_close(twin, found, rtol=0, atol=1e-5)
        torch.testing.assert_close(found, normalize(torch.stack(frames).mean(dim=0), dim=-1))
        picture = model.encode_images({"image": clips[:, :, 0]}).pooled
        torch.testing.assert_close(model.encode_images({"image": still}).pooled, picture)


def test_what_does_not_read_videos_says_so(make, folder, capsys):
    clips = torch.rand(2, 3, FRAMES, lavis_tiny.SIZE, lavis_tiny.SIZE)
    with pytest.raises(ItmError, match=r"itm_blip2 reads no videos; use itm_clip, itm_blip or itm_albef"):
        make("blip2").encode_images({"image": clips})
    content = project(folder, "stock", lavis_tiny.section("clip", folder / "vocab.txt"), task="retrieval")
    assert train(folder, content) == 2
    assert "a batch has video, text_input, image_id" in capsys.readouterr().err
