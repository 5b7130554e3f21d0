"""Labels of configured data: rows are those of the training items, whoever made them; and graded metrics of a split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from lavis import tasks
from lavis.common.registry import registry

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.joined import training_set
from lavis_itm_plugins.data.lookup import training_texts
from lavis_itm_plugins.data.relevance import LabelConfig, split_labels, training_labels
from lavis_itm_plugins.data.scenes import relevance
from lavis_itm_plugins.data.scenes.store import load_scenes
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance import DocumentFrequency, cider_relevance
from lavis_itm_plugins.runners.settings import GradedConfig, parse_itm
from lavis_itm_plugins.tasks.retrieval import ItmRetrievalTask, summary
from tests.pictures import pixels_project, write_jsonl, write_lavis
from tests.tiny import project, write_precomp, write_project


def training_items(path):
    """The training set that a run of this project has."""
    config = ProjectConfig(path)
    return training_set(tasks.setup_task(config).build_datasets(config))


def test_rows_are_those_of_the_training_items_of_several_sets(tmp_path) -> None:
    """Our pictures and LAVIS's flickr30k, whose items say an image id of their own."""
    processor = {"name": "blip_image_train", "image_size": 32}
    datasets = {
        "itm_pairs": {"annotations": str(write_jsonl(tmp_path / "pairs")), "image_size": 32},
        "flickr30k": {
            "data_type": "images",
            "build_info": write_lavis(tmp_path / "lavis"),
            "vis_processor": {"train": processor, "eval": processor},
        },
    }
    path = write_project(tmp_path / "p.yaml", pixels_project(datasets, tmp_path))
    config = ProjectConfig(path)
    built = {name: registry.get_builder_class(name)(config.datasets_cfg[name]).build_datasets() for name in datasets}
    items = training_set(built)
    captions, caption_image = training_texts()
    found = [items[row] for row in range(len(items))]
    assert caption_image.tolist() == [int(item["image_id"]) for item in found]
    words = [[text.lower().strip(" .") for text in texts] for texts in (captions, (i["text_input"] for i in found))]
    assert words[0] == words[1]
    labels = training_labels(LabelConfig(cache=str(tmp_path / "cache")))
    np.testing.assert_array_equal(labels.caption_image, caption_image)


def test_truth_of_scenes(tmp_path) -> None:
    datasets = {"itm_scenes": {"train": 6, "val": 2, "test": 2, "size": 32, "cache": str(tmp_path)}}
    path = write_project(tmp_path / "p.yaml", pixels_project(datasets, tmp_path))
    items = training_items(path)
    labels = training_labels(LabelConfig(source="scenes"))
    np.testing.assert_array_equal(labels.caption_image, items.image_ids)
    scenes = load_scenes(next(tmp_path.glob("scenes-*")), "train")
    block = labels.labels([5, 0, 5], [3, 29, 3, 11])
    expected = [[relevance(scenes.scenes[i], scenes.claims[c]) for c in (3, 29, 3, 11)] for i in (5, 0, 5)]
    np.testing.assert_allclose(block, expected, rtol=1e-6)
    own = labels.labels(np.arange(6), np.arange(30))[labels.caption_image, np.arange(30)]
    assert (own == 1).all()
    with pytest.raises(ItmError, match="image row 6 is not among the 6"):
        labels.labels([6], [0])
    validation = split_labels(LabelConfig(source="scenes"), "val", [], [])
    assert validation.n_images == 2
    with pytest.raises(ItmError, match="scenes knows only the splits of itm_scenes"):
        split_labels(LabelConfig(source="scenes"), None, [], [])


@pytest.fixture
def configured(tmp_path):
    """A task with the tiny features, and its datasets."""
    root = write_precomp(tmp_path / "data")
    config = ProjectConfig(write_project(tmp_path / "x.yaml", project(root, tmp_path)))
    task = tasks.setup_task(config)
    return SimpleNamespace(task=task, val=task.build_datasets(config)["itm_precomp"]["val"])


def test_evaluation_labels_have_the_training_frequencies(configured) -> None:
    val = configured.val
    labels = split_labels(LabelConfig(reduce="mean"), "val", val.text, val.caption_image)
    frequency = DocumentFrequency.of(*training_texts())
    images = [[val.text[row] for row in val.img2txt[image]] for image in range(len(val))]
    expected = cider_relevance(images, val.text, document_frequency=frequency, reduce="mean")
    expected[val.caption_image, np.arange(len(val.text))] = 1
    np.testing.assert_allclose(labels.labels(np.arange(len(val)), np.arange(len(val.text))), expected, atol=1e-7)
    own = cider_relevance(images, val.text, reduce="mean")
    own[val.caption_image, np.arange(len(val.text))] = 1
    assert np.abs(own - expected).max() > 0.01  # the split's own frequencies would be others


def test_training_captions_are_needed(tmp_path) -> None:
    registry.unregister("configuration")
    with pytest.raises(ItmError, match="relevance labels need training captions"):
        split_labels(LabelConfig(), "val", ["a dog"], [0])


class Network:
    """A network of LAVIS's own: a matrix for each direction."""

    def __init__(self, by_image, by_caption) -> None:
        self.matrices = by_image, by_caption.T

    def compute_sim_matrix(self, data_loader, task_cfg):
        return self.matrices


def test_graded_metrics_are_off_until_asked_for_and_each_direction_is_its_own(configured) -> None:
    val, loader = configured.val, SimpleNamespace(dataset=configured.val)
    labels = split_labels(LabelConfig(), "val", val.text, val.caption_image)
    truth = labels.labels(np.arange(len(val)), np.arange(len(val.text))).astype(np.float64)
    network = Network(truth, -truth)
    assert "tau" not in configured.task.evaluation(network, loader)
    task = ItmRetrievalTask({"itm": {"graded": {"labels": {"source": "cider"}, "queries": None}}})
    metrics = task.evaluation(network, loader)
    assert metrics["txt_tau"] == pytest.approx(1) and metrics["img_tau"] == pytest.approx(-1)
    assert metrics["txt_ndcg"] == pytest.approx(1) and metrics["tau"] == pytest.approx(0)
    assert task.evaluation(network, loader) == metrics
    assert summary(metrics).endswith(", tau 0.000")


def test_graded_settings() -> None:
    assert parse_itm({}).graded == GradedConfig() and GradedConfig().labels is None
    chosen = parse_itm({"itm": {"graded": {"labels": {"source": "scenes"}, "queries": 50}}}).graded
    assert chosen.labels == LabelConfig(source="scenes") and chosen.queries == 50
    for section, message in (
        ({"labels": {"source": "cidr"}}, r'graded\.labels\.source: unknown choice "cidr"; did you mean cider'),
        ({"labels": {"source": "sentence"}}, r"graded\.labels: source: sentence needs an encoder"),
        ({"queries": 0}, r"graded\.queries: 0 is out of range"),
        ({"quries": 1}, r"graded\.quries: unknown key; did you mean queries"),
    ):
        with pytest.raises(ItmError, match=message):
            parse_itm({"itm": {"graded": section}})
