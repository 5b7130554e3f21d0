"""Several training sets in one run: their image ids stay apart, whoever made them."""

import numpy as np
import pytest
import torch
from lavis import tasks

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.joined import check_splits, evaluation_set, training_set
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.runners.runner import ItmRunner
from tests.pictures import metrics_of, pixels_project, write_jsonl, write_lavis
from tests.tiny import write_precomp, write_project

SIZE = 32


def sections(folder):
    """Our pictures and LAVIS's flickr30k."""
    processor = {"name": "blip_image_train", "image_size": SIZE}
    return {
        "itm_pairs": {"annotations": str(write_jsonl(folder / "pairs")), "image_size": SIZE},
        "flickr30k": {
            "data_type": "images",
            "build_info": write_lavis(folder / "lavis"),
            "vis_processor": {"train": processor, "eval": processor},
        },
    }


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path / "p.yaml", pixels_project(sections(tmp_path), tmp_path))


def datasets_of(path):
    """Both, the second with its training split alone."""
    sections = ProjectConfig(path).datasets_cfg
    built = {name: registered("builder")[name](sections[name]).build_datasets() for name in sections}
    return {**built, "flickr30k": {"train": built["flickr30k"]["train"]}}


def test_ids_of_two_sets_stay_apart(project):
    datasets = datasets_of(project)
    joined = training_set(datasets)
    ours, theirs = datasets["itm_pairs"]["train"], datasets["flickr30k"]["train"]
    assert len(joined) == len(ours) + len(theirs) == 48
    ids = [int(joined[row]["image_id"]) for row in range(len(joined))]
    assert ids == [row for row in range(24) for _ in range(2)]
    assert joined[24]["text_input"] == theirs[0]["text_input"]
    assert (joined[30]["index"], joined[30]["instance_id"]) == (30, "30")
    batch = joined.collater([joined[0], joined[24]])
    assert batch["image"].shape == (2, 3, SIZE, SIZE) and batch["image_id"].tolist() == [0, 12]
    assert batch["text_input"] == [ours[0]["text_input"], theirs[0]["text_input"]]


def test_the_epoch_reaches_every_set(project):
    datasets = datasets_of(project)
    joined = training_set(datasets)
    before = joined[0]["image"]
    joined.set_epoch(1)
    assert datasets["itm_pairs"]["train"].epoch == 1
    assert not torch.equal(joined[0]["image"], before)


def test_features_with_and_without_a_mask_share_a_batch(tmp_path):
    roots = [write_precomp(tmp_path / name, train=4, val=0) for name in ("a", "b")]
    builder = registered("builder")["itm_precomp"]
    parts = [
        builder({"root": str(root), "region_drop": drop, "data_type": "features"}).build_datasets()
        for root, drop in zip(roots, (0.5, 0.0), strict=True)
    ]
    joined = training_set({"a": parts[0], "b": parts[1]})
    batch = joined.collater([joined[0], joined[20]])
    assert "image_mask" not in joined[20]
    assert torch.equal(batch["image_mask"], torch.stack([joined[0]["image_mask"], torch.ones(3, dtype=torch.bool)]))
    assert batch["image"].shape == (2, 3, 8) and batch["image_id"].tolist() == [0, 4]


def test_images_of_two_shapes_are_refused_before_training(tmp_path):
    both = sections(tmp_path)
    both["itm_pairs"]["image_size"] = 48
    datasets = datasets_of(write_project(tmp_path / "p.yaml", pixels_project(both, tmp_path)))
    before = torch.get_rng_state()
    with pytest.raises(ItmError) as caught:
        training_set(datasets)
    assert str(caught.value) == (
        "the training images have different shapes: (3, 32, 32) in flickr30k, (3, 48, 48) in itm_pairs; "
        "give all the same image_size, or one kind of features"
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_on_two_sets(project, tmp_path):
    datasets = datasets_of(project)
    config = ProjectConfig(project)
    task = tasks.setup_task(config)
    runner = ItmRunner(cfg=config, task=task, model=task.build_model(config), datasets=datasets, job_id="x")
    runner.train()
    train, val, _test = metrics_of(tmp_path / "run")
    assert np.isfinite(train["loss"]) and val["rsum"] > 0
    assert runner.train_batches.size == 48


def test_two_sets_with_one_evaluation_split_are_refused():
    both = {"a": {"train": [1], "val": [1]}, "b": {"val": [2], "test": [3]}}
    with pytest.raises(ItmError, match=r"^a and b both have a val split; metrics need one, so drop it in the others$"):
        check_splits(both, {})
    one = {"a": {"val": [1]}, "b": {"test": [3]}}
    with pytest.raises(ItmError, match=r"^a, b: no training split; name a data set with training captions$"):
        check_splits(one, {})
    check_splits(one, {"evaluate": True})
    assert (training_set(one), evaluation_set(one, "test"), evaluation_set({}, "val")) == (None, [3], None)
