"""`itm_vse` as a person meets it: built from a configuration, saved, loaded by name, scored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from lavis.common.registry import registry
from lavis.models import load_model
from torch.utils.data import DataLoader

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.image import ImageConfig
from lavis_itm_plugins.encoders.text import TextConfig
from lavis_itm_plugins.encoders.vocabulary import SPECIAL, Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher, unit
from lavis_itm_plugins.methods.base_loss import BaseLoss

WORDS = [*SPECIAL, "a", "red", "green", "dog", "cat", "ball"]


@pytest.fixture(autouse=True)
def no_configuration():
    """LAVIS keeps one configuration for the whole process."""
    before = registry.get("configuration", no_warning=True)
    registry.mapping["state"].pop("configuration", None)
    yield
    registry.mapping["state"]["configuration"] = before


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_precomp(tmp_path_factory.mktemp("data"))


def configured(root, folder, **model):
    """A registered configuration of the tiny project, with keys of the model section set."""
    content = tiny.project(root, folder)
    content["model"].update(model)
    return ProjectConfig(tiny.write_project(folder / "x.yaml", content))


def make(words=WORDS, *, dim=8, embed_dim=12, **keys):
    """A network on features of size `dim`."""
    torch.manual_seed(0)
    image, text = ImageConfig(dim=dim, dropout=0.5), TextConfig(word_dim=6, hidden=5)
    return VseMatcher(VseConfig(embed_dim=embed_dim, image=image, text=text, **keys), Vocabulary(words)).eval()


def saved(model, path):
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def batch_of(image_ids, *, dim=8, **more):
    captions = [f"a {'red' if n % 2 else 'green'} {('dog', 'cat', 'ball')[n % 3]}" for n in range(len(image_ids))]
    torch.manual_seed(1)
    return {
        "image": torch.randn(len(image_ids), 3, dim),
        "text_input": captions,
        "image_id": torch.tensor(image_ids),
        **more,
    }


def test_words_and_feature_size_come_from_the_configured_data(root, tmp_path):
    model = VseMatcher.from_config(configured(root, tmp_path).model_cfg)
    assert {"red", *tiny.THINGS, "photo", "grass"} <= set(model.vocabulary.words)
    assert model.config.image.dim == 8 and model.config.embed_dim == 16
    rare = VseMatcher.from_config(configured(root, tmp_path, min_count=25).model_cfg).vocabulary
    assert 4 < len(rare) < len(model.vocabulary) and rare.words[4] == "a"


def test_a_vocabulary_file_is_used_instead(root, tmp_path):
    Vocabulary(WORDS).save(tmp_path / "v.json")
    model = VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "v.json")).model_cfg)
    assert model.vocabulary.words == WORDS
    with pytest.raises(ItmError, match=r"cannot read the vocabulary .*nothing.json"):
        VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "nothing.json")).model_cfg)


def test_with_neither_one_sentence_says_so(tmp_path):
    with pytest.raises(ItmError, match=r"^no vocabulary: set model.vocab_path to a JSON vocabulary, or name a data"):
        VseMatcher.from_config({"arch": "itm_vse"})
    (tmp_path / "v.json").write_text(json.dumps(WORDS))
    with pytest.raises(ItmError, match=r"^the size of a region feature is not known: set model.image.dim"):
        VseMatcher.from_config({"vocab_path": str(tmp_path / "v.json")})
    model = VseMatcher.from_config({"vocab_path": str(tmp_path / "v.json"), "image": {"dim": 5}})
    assert model.vocabulary.words == WORDS and model.config.image.dim == 5


def test_features_for_a_data_set_of_pictures_are_a_mistake(tmp_path):
    content = tiny.project(tmp_path, tmp_path)
    content["datasets"] = {"itm_scenes": {"train": 4, "val": 1, "test": 1, "size": 32, "cache": str(tmp_path)}}
    config = ProjectConfig(tiny.write_project(tmp_path / "x.yaml", content))
    with pytest.raises(ItmError, match="the size of a region feature is not known"):
        VseMatcher.from_config(config.model_cfg)


def test_load_model_builds_from_the_checkpoint_alone(tmp_path):
    model = make()
    path = saved(model, tmp_path / "c.pth")
    loaded = load_model("itm_vse", "regions_gru", is_eval=True, device="cpu", checkpoint=path)
    assert loaded.config == model.config and loaded.vocabulary.words == WORDS and not loaded.training
    pictures, captions = {"image": torch.randn(3, 4, 8)}, ["a red dog", "green"]
    assert torch.equal(loaded.encode_images(pictures).pooled, model.encode_images(pictures).pooled)
    assert torch.equal(loaded.encode_captions(captions).pooled, model.encode_captions(captions).pooled)


def test_an_unbuilt_network_says_so():
    model = load_model("itm_vse", "regions_gru", device="cpu")
    sentence = "this itm_vse has no weights and no vocabulary yet; load a checkpoint"
    for use in (
        lambda: model(batch_of([0, 1])),
        lambda: model.encode_images(batch_of([0, 1])),
        lambda: model.encode_captions(["a dog"]),
    ):
        with pytest.raises(ItmError, match=sentence):
            use()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"words": [*WORDS[:-1], "box"]},
            r"c.pth: the checkpoint's vocabulary \(10 words\) differs from this model's",
        ),
        ({"embed_dim": 10}, r"c.pth does not fit this model: Missing key\(s\) in state_dict: .text_encoder.projection"),
        ({"dim": 9}, r"c.pth does not fit this model: size mismatch for image_encoder"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, change, sentence):
    path = saved(make(**change), tmp_path / "c.pth")
    with pytest.raises(ItmError, match=sentence) as caught:
        make().load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_arch_or_of_no_network_is_refused(tmp_path):
    state = make().state_dict()
    state["_extra_state"]["arch"] = "itm_scan"
    torch.save({"model": state}, tmp_path / "scan.pth")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "bare.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name, sentence in {
        "scan": r"scan.pth holds a itm_scan, not a itm_vse",
        "bare": r"bare.pth does not describe its network; build the model from its YAML, then load it",
        "none": r"none.pth holds no weights",
        "nowhere": r"nowhere.pth does not exist",
    }.items():
        with pytest.raises(ItmError, match=sentence):
            load_model("itm_vse", "regions_gru", device="cpu", checkpoint=str(tmp_path / f"{name}.pth"))
    with pytest.raises(ItmError, match=r"bare.pth does not fit this model: "):
        make().load_checkpoint(tmp_path / "bare.pth")


def test_a_checkpoint_opens_without_executing_anything(tmp_path):
    state = torch.load(saved(make(), tmp_path / "c.pth"), weights_only=True)["model"]
    described = state["_extra_state"]
    assert described["arch"] == "itm_vse" and described["vocabulary"] == WORDS
    assert json.loads(json.dumps(described)) == described and described["config"]["embed_dim"] == 12


def test_weights_of_a_method_give_its_matcher(tmp_path):
    model = make()
    torch.save({"model": {f"matcher.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "c.pth")
    loaded = load_model("itm_vse", "regions_gru", device="cpu", checkpoint=str(tmp_path / "c.pth"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("key", ["pretrained", "finetuned"])
def test_fine_tuning_starts_from_the_weights_and_their_words(root, tmp_path, key):
    Vocabulary([*SPECIAL, "a", "red"]).save(tmp_path / "v.json")
    model = VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "v.json")).model_cfg)
    path = saved(model, tmp_path / "c.pth")
    tuned = VseMatcher.from_config(configured(root, tmp_path, **{key: path}).model_cfg)
    assert tuned.vocabulary.words == model.vocabulary.words
    state = tuned.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.named_parameters())
    switched_off = configured(root, tmp_path, **{key: path, f"load_{key}": False})
    assert len(VseMatcher.from_config(switched_off.model_cfg).vocabulary) > 6


def test_the_similarity_matrix_is_the_cosine_in_order(root):
    """Whatever order a loader has, and captions are encoded in another one."""
    builder = PrecompBuilder({"root": str(root), "data_type": "features"})
    dataset, model = builder.build()["val"], make(embed_dim=6)
    batches = [[5, 2], [0, 7, 1], [3], [6, 4]]
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater)
    model.train()
    scores, transposed = model.compute_sim_matrix(loader, task_cfg=None)
    assert model.training
    model.eval()
    with torch.no_grad():
        images = torch.stack([model.image_encoder(dataset[i]["image"][None])[0] for i in range(len(dataset))])
        captions = torch.cat([model.text_encoder([caption]) for caption in dataset.text])
    expected = torch.nn.functional.cosine_similarity(images[:, None], captions[None], dim=-1)
    assert scores.shape == (8, 40) and np.array_equal(transposed, scores.T)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_pair_scores_are_the_diagonal_and_vectors_have_length_one():
    model, batch = make(), batch_of([0, 1, 2, 3])
    images, captions = model.encode_images(batch), model.encode_captions(batch["text_input"])
    torch.testing.assert_close(model.score_pairs(images, captions), model.score(images, captions).diagonal())
    torch.testing.assert_close(images.pooled.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(captions.pooled.norm(dim=1), torch.ones(4))
    assert model.score(images[:3], captions).shape == (3, 4)


@pytest.mark.parametrize("base_loss", [BaseLoss(name="infonce"), BaseLoss(name="triplet", negatives="all")])
def test_captions_of_one_image_are_never_negatives(base_loss, monkeypatch):
    """The loss does not see the score of an image with another caption of its own."""
    model = make(base_loss=base_loss)

    def loss(own_other, stranger, ids):
        scores = torch.tensor([[0.9, own_other, 0.1], [own_other, 0.8, 0.2], [stranger, 0.3, 0.7]])
        monkeypatch.setattr(model, "score", lambda images, captions: scores)
        return model(batch_of(ids))["loss"].item()

    assert loss(0.0, 0.1, [4, 4, 9]) == loss(0.95, 0.1, [4, 4, 9])
    assert loss(0.0, 0.1, [4, 4, 9]) != loss(0.0, 0.75, [4, 4, 9])
    assert loss(0.0, 0.1, [4, 5, 9]) != loss(0.95, 0.1, [4, 5, 9])


def test_the_loss_is_the_sum_of_its_parts_and_reaches_every_weight():
    model = make().train()
    output = model(batch_of([0, 1, 2, 3]))
    assert torch.equal(output["loss"], output["loss_base"])
    output["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_triplet_warm_up_uses_all_negatives_first():
    model = make(base_loss=BaseLoss(name="triplet", warmup_epochs=2, margin=1.0))
    losses = [model(batch_of([0, 1, 2, 3], epoch=epoch))["loss"].item() for epoch in range(3)]
    assert losses[0] == losses[1] > losses[2]


def test_zero_features_give_no_nan():
    model, batch = make(), batch_of([0, 1, 2])
    batch["image"] = torch.zeros(3, 3, 8, requires_grad=True)
    output = model(batch)
    output["loss"].backward()
    assert output["loss"].isfinite() and batch["image"].grad.isfinite().all()
    zeros = torch.zeros(2, 4, requires_grad=True)
    unit(zeros).sum().backward()
    assert torch.equal(unit(zeros), zeros) and zeros.grad.isfinite().all()


def test_regions_left_out_by_the_data_do_not_count():
    model, batch = make(), batch_of([0, 1])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = model.encode_images({**batch, "image_mask": mask}).pooled
    torch.testing.assert_close(masked[0], model.encode_images({"image": batch["image"][:1, [0, 2]]}).pooled[0])
    torch.testing.assert_close(masked[1], model.encode_images(batch).pooled[1])


def test_learning_rate_factors_of_the_encoders_and_no_decay_of_biases():
    model = make()
    config = VseConfig(image=ImageConfig(dim=8), text=TextConfig(word_dim=6, hidden=5, lr_scale=0.1), embed_dim=12)
    groups = VseMatcher(config, model.vocabulary).param_groups()
    found = {(group["lr_scale"], group["decay"]): len(group["params"]) for group in groups}
    assert set(found) == {(0.1, True), (0.1, False), (1.0, True), (1.0, False)}
    assert sum(found.values()) == len(list(model.parameters()))
    assert all((p.ndim >= 2) == group["decay"] for group in groups for p in group["params"])


def test_the_vocabulary_goes_to_the_run_folder(tmp_path):
    make().write_assets(tmp_path)
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == WORDS


def test_score_of_encoded_tiles_is_the_tile_of_scores():
    model = make()
    images, captions = Encoded(pooled=torch.randn(5, 12)), Encoded(pooled=torch.randn(7, 12))
    torch.testing.assert_close(model.score(images[1:3], captions[2:6]), model.score(images, captions)[1:3, 2:6])
