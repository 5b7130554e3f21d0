"""Region features, and pixels through each kind of network, to one vector per picture."""

from __future__ import annotations

import pytest
import timm
import torch
from vse_golden import GPO_TOLERANCE, golden, mask_of, weights

from lavis_itm_plugins.encoders.image import ImageConfig, ImageEncoder, RegionProjection
from lavis_itm_plugins.encoders.pooling import GPO, POOLINGS
from lavis_itm_plugins.errors import ItmError

OFFICIAL = {"fc.": "fc.", "mlp.layers.0.": "mlp.first.", "mlp.layers.1.": "mlp.second.", "mlp.bns.0.": "mlp.norm."}


def encoder(embed_dim=8, **config):
    torch.manual_seed(0)
    return ImageEncoder(ImageConfig(**config), embed_dim).eval()


def regions(**config):
    return encoder(kind="regions", dim=6, **config)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("projection", ["linear", "residual"])
@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_regions(pooling, projection, count):
    vectors = regions(pooling=pooling, projection=projection)(torch.randn(3, count, 6))
    assert vectors.shape == (3, 8) and vectors.isfinite().all()


def test_one_vector_per_image_may_come_without_a_region_axis():
    model, features = regions(), torch.randn(3, 6)
    assert torch.equal(model(features), model(features[:, None]))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_regions_left_out_do_not_count(norm):
    """In training too: batch statistics see real regions only."""
    model, features = regions(norm=norm).train(), torch.randn(3, 5, 6)
    mask = mask_of(torch.tensor([5, 2, 3]), 5)
    changed = features.masked_fill(~mask[..., None], 1e4)
    torch.testing.assert_close(model(changed, mask), model(features, mask))
    assert not torch.allclose(model(changed), model(features))


def test_with_layer_norm_an_image_does_not_depend_on_its_batch():
    model, features = regions(norm="layer").train(), torch.randn(4, 5, 6)
    torch.testing.assert_close(model(features)[1:2], model(features[1:2]))


def test_dropout_on_features_and_on_the_vector_only_in_training():
    features = torch.ones(64, 4, 6)
    for name in ("dropout", "output_dropout"):
        model = regions(**{name: 0.5})
        assert torch.equal(model(features), model(features))
        assert not torch.equal(model.train()(features), model(features))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(2, 5, 7), "image features have size 7, this model reads 6; use the data it was made for"),
        (torch.zeros(2, 3, 32, 32), "image features have size 32, this model reads 6"),
    ],
)
def test_features_of_another_size_are_refused(image, sentence):
    with pytest.raises(ItmError, match=sentence):
        regions()(image)


def test_a_feature_size_is_needed():
    with pytest.raises(ItmError, match=r"set model.image.dim or name a data set"):
        encoder(kind="regions")


@pytest.mark.parametrize(("size", "cells"), [(64, 16), (96, 36), (32, 4), (65, 25)])
def test_the_convolutional_grid(size, cells):
    model = encoder(kind="conv", width=16)
    assert model.trunk(torch.rand(2, 3, size, size)).shape == (2, cells, model.trunk.dim)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 8)


def test_a_pixel_network_refuses_region_features():
    sentence = r"reads pictures .* the data has features \(2, 9, 6\); choose model.image.kind: regions"
    with pytest.raises(ItmError, match=sentence):
        encoder(kind="conv", width=16)(torch.zeros(2, 9, 6))


def test_vit_of_a_small_size():
    model = encoder(kind="vit", size=32, width=16)
    assert model.trunk(torch.rand(2, 3, 32, 32)).shape == (2, 5, 16)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    with pytest.raises(ItmError, match=r"pictures have \(48, 48\) pixels; set model.image.size to that"):
        model(torch.rand(2, 3, 48, 48))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 224)])
def test_a_timm_model_from_random_weights(name, size):
    model = encoder(kind="timm", timm_name=name)
    assert model(torch.rand(1, 3, size, size)).shape == (1, 8)


def test_timm_mistakes_are_sentences(monkeypatch):
    with pytest.raises(ItmError, match='unknown timm model "resnet19"; did you mean resnet'):
        encoder(kind="timm", timm_name="resnet19")
    with pytest.raises(ItmError, match=r"\(64, 64\) pixels do not fit this timm model"):
        encoder(kind="timm", timm_name="vit_tiny_patch16_224")(torch.rand(1, 3, 64, 64))

    def unreachable(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ItmError, match=r"resnet18 cannot be made \(.*Name or service.*pretrained: false"):
        encoder(kind="timm", timm_name="resnet18", pretrained=True)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_official_vse_infinity_image_encoder(training):
    """In training its batch norm also averages over padding: ours does so without a mask, and not with one."""
    case = golden("vse_infty_image_bn_train" if training else "vse_infty_image")
    projection, gpo = RegionProjection(10, 24, "residual", "batch").double(), GPO().double()
    projection.load_state_dict(weights(case, OFFICIAL))
    gpo.load_state_dict(weights(case, {"gpool.": ""}))
    images = case["in/images"].requires_grad_()
    mask = mask_of(case["in/regions"], images.shape[1])
    projected = projection.train(training)(images, None if training else mask)
    vectors = torch.nn.functional.normalize(gpo(projected, mask), dim=-1)
    torch.testing.assert_close(vectors, case["out/emb"], **GPO_TOLERANCE)
    (vectors * case["in/cotangent"]).sum().backward()
    torch.testing.assert_close(images.grad[mask], case["grad/images"][mask], **GPO_TOLERANCE)
    if training:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(projection.mlp.norm, name), case[f"out/after/mlp.bns.0.{name}"])


def test_equals_the_official_vsepp_image_encoder():
    case = golden("vsepp_image")
    model = ImageEncoder(ImageConfig(kind="regions", dim=11, projection="linear", pooling="mean"), 24).double()
    model.projection.load_state_dict(weights(case, {"": ""}))
    vectors = torch.nn.functional.normalize(model(case["in/images"]), dim=-1)
    torch.testing.assert_close(vectors, case["out/emb"], rtol=1e-9, atol=1e-12)
