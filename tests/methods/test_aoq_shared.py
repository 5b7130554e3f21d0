"""`offline: shared`: what was mined for one pair is a negative of all, and round one is an example over it."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from methods.aoq_batch import batch_of, method
from runners.ranks import small_matcher

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import shared_distillation_loss
from lavis_itm_plugins.methods.base import same_image


@pytest.mark.parametrize(("pairs", "draws"), [(True, 1), (False, 1), (True, 3)])
def test_mined_items_are_shared_by_the_whole_batch(split, sampler, pairs, draws):
    """Every mined caption and image is a negative of every pair, unless it is of the pair's own image."""
    model = method({"name": "infonce", "temperature": 0.1}, offline="shared", pairs=pairs, draws=draws)
    batch = batch_of(split, sampler, pairs=pairs, draws=draws)
    assert len(batch["offline_text_input"]) == len(batch["offline_image"]) == 5 * draws * (1 + pairs)
    # what is logged of the four scores is of the first draw, which is the only one without `draws`
    shares = ("aoq_offline_over_online", "aoq_cross_pairs", "aoq_active_pairs")
    once = method({"name": "infonce"}, offline="shared", pairs=pairs).losses(batch_of(split, sampler, pairs=pairs))
    assert all(torch.equal(model.losses(batch)[name], once[name]) for name in shares)
    matcher, ids = model.matcher, batch["image_id"].tolist()
    images, captions = matcher.encode_images({"image": batch["image"]}), matcher.encode_captions(batch["text_input"])
    mined_images = matcher.encode_images({"image": batch["offline_image"]})
    mined_captions = matcher.encode_captions(batch["offline_text_input"])
    # whose a mined item is, by its text or its features
    owners = dict(zip(split.captions, split.caption_image, strict=True))
    caption_ids = [owners[text] for text in batch["offline_text_input"]]
    every_image = split.images.fetch(split.image_rows).double()
    image_ids = [int((every_image == one).flatten(1).all(dim=1).nonzero()) for one in batch["offline_image"]]

    def costs(scores, mined, mined_ids):
        for i, own in enumerate(ids):
            online = [scores[i, j] for j, other in enumerate(ids) if j == i or other != own]
            offline = [mined[i, n] for n, other in enumerate(mined_ids) if other != own]
            yield torch.stack([*online, *offline]).div(0.1).logsumexp(dim=0) - scores[i, i] / 0.1

    scores = matcher.score(images, captions)
    by_image = costs(scores, matcher.score(images, mined_captions), caption_ids)
    by_caption = costs(scores.T, matcher.score(mined_images, captions).T, image_ids)
    expected = torch.stack([*by_image, *by_caption]).mean()
    torch.testing.assert_close(model(batch)["loss"], expected, rtol=1e-10, atol=1e-12)


def another_matcher():
    """One that scores in another way than the model's own, as a trained round one does."""
    teacher = small_matcher()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return teacher


def test_round_one_is_an_example_of_batch_and_mined_items(split, sampler):
    """The loss is that of the functions; round one gets no gradient, and its scores are those of its own vectors."""
    keys = {"offline": "shared", "pairs": False, "distill": 0.5, "distill_temperature": 0.2}
    model = method({"name": "infonce", "temperature": 0.1}, candidates={"source": "round_one"}, **keys)
    batch, teacher = batch_of(split, sampler, pairs=False), another_matcher()
    with pytest.raises(ItmError, match="round one in a hook that only itm_runner calls"):
        model.losses(batch)
    model.round_one._anchor = SimpleNamespace(matcher=teacher, to=lambda _: SimpleNamespace(matcher=teacher))
    parts = model.losses(batch)
    images = [{"image": batch["image"]}, {"image": batch["offline_image"]}]
    texts = batch["text_input"], batch["offline_text_input"]

    def scores_of(matcher):
        own, mined = (matcher.encode_images(image) for image in images)
        captions, more = (matcher.encode_captions(text) for text in texts)
        return matcher.score(own, captions), matcher.score(own, more), matcher.score(mined, captions)

    scores, mined_captions, mined_images = scores_of(model.matcher)
    anchor = dict(zip(("anchor", "anchor_captions", "anchor_images"), scores_of(teacher), strict=True))
    owners = dict(zip(split.captions, split.caption_image, strict=True))
    mined_ids = torch.tensor([owners[text] for text in texts[1]])
    expected = shared_distillation_loss(
        scores,
        **anchor,
        mined_captions=mined_captions,
        mined_images=mined_images,
        caption_negatives=batch["image_id"][:, None] != mined_ids,
        image_negatives=batch["offline_image_id"][:5, None] != batch["image_id"],
        temperature=0.2,
        positives=same_image(batch["image_id"]),
    )
    torch.testing.assert_close(parts["loss_distill"], 0.5 * expected, rtol=1e-10, atol=1e-12)
    without = method({"name": "infonce", "temperature": 0.1}, offline="shared", pairs=False).losses(batch)
    torch.testing.assert_close(parts["loss_base"], without["loss_base"])
    sum(value for name, value in parts.items() if name.startswith("loss_")).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert deepcopy(model).round_one is model.round_one


def test_round_one_in_half_precision(split, sampler):
    """Under autocast the losses are near those without, and in float32."""
    keys = {"offline": "shared", "distill": 1.0}
    model = method({"name": "infonce"}, candidates={"source": "round_one"}, **keys).float()
    teacher = another_matcher().float()
    model.round_one._anchor = SimpleNamespace(matcher=teacher, to=lambda _: SimpleNamespace(matcher=teacher))
    batch = {key: value.float() if key.endswith("image") else value for key, value in batch_of(split, sampler).items()}
    whole = model.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.losses(batch)
    for name in ("loss_base", "loss_distill"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], whole[name], rtol=0.05, atol=0.01)
