"""SCAN, BFAN, SGRAF and VSRN as matchers: any features, masks, methods' seams, training, resume and two ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from lavis.models import load_model
from matchers.sets import SECTIONS, batch_of, make, section_of
from scripts import run_script
from torch.utils.data import DataLoader

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.distributed import gather_encoded
from lavis_itm_plugins.encoders.encoded import concatenate
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.train import run_training

SETS = [name for name in SECTIONS if name != "vsrn"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def trained(root, folder, name, **run):
    """The runner after training a small network of this kind."""
    content = tiny.project(root, folder / "runs", **{"batch_size_train": 40, "max_epoch": 1, **run})
    content["model"] = {"arch": SECTIONS[name][0].arch, "model_type": "f30k", **section_of(name)}
    if content["model"]["arch"] == "itm_sgraf":
        content["model"]["model_type"] = f"f30k_{name}"
    return run_training(tiny.write_project(folder / "x.yaml", content))


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize(("regions", "dim"), [(36, 2048), (9, 256), (1, 1280)])
def test_regions_grids_and_single_vectors_all_train(name, regions, dim):
    model = make(name, dim=dim, regions=regions)
    batch = batch_of([0, 1, 2, 0], dim=dim, regions=regions)
    if regions == 1:
        batch["image"] = batch["image"][:, 0]
    output = model(batch)
    output["loss"].backward()
    assert output["loss"].isfinite() and output["loss"] > 0
    missing = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not missing
    assert any(value.grad.any() for value in model.image_encoder.parameters())


@pytest.mark.parametrize("name", SECTIONS)
def test_pictures_through_an_encoder_that_keeps_its_grid(name):
    model = make(name, image={"kind": "conv", "projection": "linear", "width": 8, "size": 32}, regions=4)
    batch = batch_of([0, 1, 2])
    batch["image"] = torch.rand(3, 3, 32, 32)
    output = model(batch)
    output["loss"].backward()
    encoded = model.eval().encode_images(batch)
    assert output["loss"].isfinite() and len(encoded) == 3
    if name != "vsrn":
        assert encoded.regions.shape == (3, 4, 10)


@pytest.mark.parametrize("name", SECTIONS)
def test_pair_scores_are_the_diagonal(name):
    model, batch = make(name).eval(), batch_of(list(range(11)))
    images, captions = model.encode_images(batch), model.encode_captions(batch["text_input"])
    scores = model.score(images, captions)
    assert scores.shape == (11, 11) and scores.unique().numel() > 40
    torch.testing.assert_close(model.score_pairs(images, captions), scores.diagonal(), **CLOSE)
    assert model.score_pairs(images[:0], captions[:0]).shape == (0,)
    torch.testing.assert_close(model.score(images[2:5], captions[4:]), scores[2:5, 4:], **CLOSE)


@pytest.mark.parametrize("name", SECTIONS)
def test_regions_left_out_by_the_data_do_not_count(name):
    model, batch = make(name).eval(), batch_of([0, 1])
    captions = model.encode_captions(batch["text_input"])
    mask = torch.tensor([[True, False, True, True], [True] * 4])
    masked = model.encode_images({**batch, "image_mask": mask})
    scores = model.score(masked, captions)
    torch.testing.assert_close(scores[1:], model.score(model.encode_images(batch), captions)[1:], **CLOSE)
    if name not in ("saf", "sgr"):
        # there each place of a region has statistics of its own
        alone = model.encode_images({"image": batch["image"][:1, [0, 2, 3]]})
        torch.testing.assert_close(scores[:1], model.score(alone, captions), **CLOSE)
    batch["image"][0, 1] = float("nan")
    again = model.score(model.encode_images({**batch, "image_mask": mask}), captions)
    torch.testing.assert_close(again, scores, **CLOSE)


@pytest.mark.parametrize("name", SETS)
def test_captions_of_other_batches_change_no_score(name):
    """Words are padded to the longest caption of a batch, and again where batches are joined."""
    model, batch = make(name).eval(), batch_of(list(range(5)))
    images = model.encode_images(batch)
    texts = batch["text_input"]
    parts = [model.encode_captions(texts[:2]), model.encode_captions(texts[2:4]), model.encode_captions(texts[4:])]
    together = model.score(images, gather_encoded(concatenate(parts)))
    torch.testing.assert_close(together, model.score(images, model.encode_captions(texts)), **CLOSE)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_network_trains_and_its_checkpoint_scores_the_same(root, tmp_path, name):
    runner = trained(root, tmp_path, name)
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    assert any(line.get("rsum", 0) > 0 for line in lines)
    arch = SECTIONS[name][0].arch
    path = str(runner.folder.best)
    model_type = next(iter(SECTIONS[name][0].PRETRAINED_MODEL_CONFIG_DICT))
    loaded = load_model(arch, model_type, is_eval=True, device="cpu", checkpoint=path)
    dataset = PrecompBuilder({"root": str(root), "data_type": "features"}).build()["val"]
    loader = DataLoader(dataset, batch_size=3, collate_fn=dataset.collater)
    scores, _ = loaded.compute_sim_matrix(loader)
    expected, _ = runner._model.eval().compute_sim_matrix(loader)
    assert scores.shape == (8, 40)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    if arch == "itm_sgraf" and name != "dbl":
        assert loaded.config.regions == 3


def test_a_resumed_run_is_exact(root, tmp_path):
    """SAF's running statistics and the shared scorer come back with everything else."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    steady = {"lr_sched": "itm_step_lr", "itm": {"run_name": "a"}}
    whole = trained(root, tmp_path / "one", "saf", max_epoch=2, **steady)
    trained(root, tmp_path / "two", "saf", max_epoch=1, **steady)
    resumed = trained(root, tmp_path / "two", "saf", max_epoch=2, resume_ckpt_path="auto", **steady)
    one, other = whole._model.state_dict(), resumed._model.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items() if torch.is_tensor(value))


def test_the_number_of_regions_must_be_known(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(["<pad>", "<start>", "<end>", "<unk>", "a"]))
    section = {**section_of("saf"), "vocab_path": str(tmp_path / "v.json"), "image": {"dim": 8}}
    with pytest.raises(ItmError, match=r"the number of regions is not known: set model.regions, or name a data set"):
        SECTIONS["saf"][0].from_config(section)


def test_vsrn_tells_captions_only_while_it_trains_and_only_with_a_weight():
    model, batch = make("vsrn"), batch_of([0, 1, 2])
    assert {"loss_base", "loss_captioning"} <= model(batch).keys()
    assert model(batch)["loss_captioning"] > 1
    assert "loss_captioning" not in model.eval()(batch) and model.encode_images(batch).regions is None
    assert make("vsrn", captioning={"weight": 0.0}).captioner is None


@pytest.mark.parametrize("arch", ["itm_scan", "itm_bfan", "itm_vsrn", "itm_sgraf"])
def test_every_model_type_is_checked_and_names_its_network(root, tmp_path, arch):
    from lavis.common.registry import registry

    network = registry.get_model_class(arch)
    for model_type in network.PRETRAINED_MODEL_CONFIG_DICT:
        content = tiny.project(root, tmp_path)
        content["model"] = {"arch": arch, "model_type": model_type}
        config = network.parse_config(ProjectConfig(tiny.write_project(tmp_path / "x.yaml", content)).model_cfg)
        assert config.base_loss.name == "triplet" and config.image.projection == "linear"


def test_two_ranks_have_the_loss_and_gradients_of_one_process(tmp_path):
    run_script("matchers/set_ranks.py", tmp_path)
    one, two = (torch.load(tmp_path / f"ranks_{size}.pt") for size in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-6, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", SECTIONS)
def test_mixed_precision_trains_and_scores_stay_in_single_precision(name):
    model, batch = make(name), batch_of([0, 1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
        images, captions = model.encode_images(batch), model.encode_captions(batch["text_input"])
        scores = model.score(images, captions)
    output["loss"].backward()
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    assert any(value.grad.any() for value in model.image_encoder.parameters())
