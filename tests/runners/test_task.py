"""The task with networks that are LAVIS's own: two score matrices, one for each direction."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from lavis_itm_plugins.runners.components import RunnerComponents


class LavisNetwork:
    """Re-ranks each direction by itself, as BLIP does: the rest of a row is -100."""

    def compute_sim_matrix(self, data_loader, task_cfg):
        by_image = np.full((3, 3), -100.0)
        by_image[[0, 1, 2], [0, 1, 2]] = 1.0
        by_caption = np.full((3, 3), -100.0)
        by_caption[[0, 1, 2], [1, 2, 0]] = 1.0
        return by_image, by_caption


def test_each_direction_comes_from_its_own_matrix():
    from lavis_itm_plugins.tasks.retrieval import ItmRetrievalTask

    dataset = SimpleNamespace(text=["a", "b", "c"], txt2img={0: 0, 1: 1, 2: 2}, __len__=lambda self: 3)
    loader = SimpleNamespace(dataset=type("Split", (), vars(dataset))())
    metrics = ItmRetrievalTask({}).evaluation(LavisNetwork(), loader)
    assert metrics["txt_r1"] == 100 and metrics["img_r1"] == 0
    assert metrics["rsum"] == sum(metrics[f"{side}_r{k}"] for side in ("txt", "img") for k in (1, 5, 10))


def test_only_our_networks_share_out_evaluation():
    runner = RunnerComponents.__new__(RunnerComponents)
    runner._model = LavisNetwork()
    assert not runner._shares_evaluation
    runner._model = SimpleNamespace(encode_images=None)
    assert runner._shares_evaluation
