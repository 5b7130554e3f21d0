"""DBL's and SGRAF's scorers against their definitions, pair by pair, and SGRAF's batch statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.tiles import DIM, Tile, make_tile, pair_attention, scorer_of, tiles
from torch import nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer, local, sets, sgraf
from lavis_itm_plugins.scoring.local import local_similarities, similarity_blocks
from lavis_itm_plugins.scoring.pooling_attention import PlaceNorm
from lavis_itm_plugins.scoring.sets import l2_normalized
from lavis_itm_plugins.scoring.sgraf import _short_softmax

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
KINDS = ("DBL", "SAF", "SGR")


def local_of(regions, words, layer):
    contexts = l2_normalized(pair_attention(words, regions, "clipped_l2norm", 9.0)[1])
    return l2_normalized(layer((contexts - words).square()))


def pair_score(scorer, regions, words):
    if isinstance(scorer, DBLScorer):
        mean = local_of(regions, words, scorer.sim_tran_w).mean(dim=0)
        return scorer.sim_eval_w(l2_normalized(mean)).tanh().squeeze()
    image, caption = scorer.v_global_w(regions[None])[0], scorer.t_global_w(words[None])[0]
    first = l2_normalized(scorer.sim_tranglo_w((image - caption).square()))
    nodes = torch.cat([first[None], local_of(regions, words, scorer.sim_tranloc_w)])
    if hasattr(scorer, "SAF_module"):
        saf = scorer.SAF_module
        gates = saf.bn(saf.attn_sim_w(nodes)).sigmoid()
        similar = l2_normalized((gates / (gates.sum() + 1e-8) * nodes).sum(dim=0))
    else:
        for step in scorer.SGR_module:
            edges = (step.graph_query_w(nodes) @ step.graph_key_w(nodes).t()).softmax(dim=1)
            nodes = step.sim_graph_w(edges @ nodes).relu()
        similar = nodes[0]
    return scorer.sim_eval_w(similar).sigmoid().squeeze()


def pair_by_pair(scorer, tile: Tile):
    rows = range(len(tile.images))
    columns = range(len(tile.captions))
    return torch.stack([torch.stack([pair_score(scorer, *tile.pair(i, c)) for c in columns]) for i in rows])


def all_of(scorer, tile: Tile):
    """Scores, and gradients of everything."""
    scorer.zero_grad()
    images, captions = tile.images.clone().requires_grad_(), tile.captions.clone().requires_grad_()
    scores = scorer(images, captions, tile.lengths, tile.regions)
    (scores * torch.arange(1.0, scores.numel() + 1).view_as(scores)).sum().backward()
    return [scores.detach(), images.grad, captions.grad, *(value.grad for value in scorer.parameters())]


@pytest.fixture
def tile():
    generator = torch.Generator().manual_seed(3)

    def random(*sizes):
        return [torch.randn(size, DIM, generator=generator, dtype=torch.float64) for size in sizes]

    return make_tile(random(3, 5, 2, 4, 5), random(4, 2, 4, 1, 6, 2, 4), float("nan"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(tile=tiles())
def test_each_score_is_that_of_its_pair_alone(kind, tile):
    scorer = scorer_of(kind)
    found = all_of(scorer, tile)
    torch.testing.assert_close(found[0], pair_by_pair(scorer, tile).detach(), **CLOSE)
    assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_definition(kind, tile):
    scorer = scorer_of(kind)
    found = all_of(scorer, tile)
    scorer.zero_grad()
    expected = pair_by_pair(scorer, tile)
    (expected * torch.arange(1.0, expected.numel() + 1).view_as(expected)).sum().backward()
    for value, parameter in zip(found[3:], scorer.parameters(), strict=True):
        torch.testing.assert_close(value, parameter.grad, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_small_tiles_and_recomputation_change_nothing(kind, training, tile, monkeypatch):
    whole = all_of(scorer_of(kind, dropout=0.0).train(training) if kind != "DBL" else scorer_of(kind), tile)
    monkeypatch.setattr(sets, "_REGION_NUMBERS", 70)
    monkeypatch.setattr(sets, "_ATTENTION_CELLS", 50)
    monkeypatch.setattr(local, "_BLOCK_NUMBERS", 3 * DIM)
    for checkpoint in (False, True):
        more = {} if kind == "DBL" else {"dropout": 0.0}
        scorer = scorer_of(kind, checkpoint=checkpoint, **more).train(training)
        for found, expected in zip(all_of(scorer, tile), whole, strict=True):
            torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("numbers", [1, 60])
def test_reasoning_over_a_few_images_at_a_time_changes_nothing(numbers, tile, monkeypatch):
    whole = all_of(scorer_of("SGR"), tile)
    monkeypatch.setattr(sgraf, "_NODE_NUMBERS", numbers)
    for found, expected in zip(all_of(scorer_of("SGR"), tile), whole, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("block", [DIM, 4 * DIM, 1000])
def test_the_backward_pass_of_similarities_is_right_in_blocks(block, queries, monkeypatch):
    monkeypatch.setattr(local, "_BLOCK_NUMBERS", block)
    torch.manual_seed(0)
    shapes = ((3, 2, 4), (3, 2, DIM), (queries, 4, DIM), (3, DIM), (3,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(local_similarities, inputs)


@settings(deadline=None, max_examples=20)
@given(sets_=st.integers(1, 7), apart=st.booleans(), block=st.sampled_from([DIM, 9 * DIM, 1000]), half=st.booleans())
def test_similarities_of_a_few_sets_at_a_time_are_those_of_all(sets_, apart, block, half):
    """Without a gradient in blocks, with one all at once."""
    torch.manual_seed(0)
    shapes = ((sets_, 2, 4), (sets_, 2, DIM), (sets_ if apart else 1, 4, DIM), (3, DIM), (3,))
    inputs = [torch.randn(shape) for shape in shapes]
    rounding = torch.bfloat16 if half else None
    expected = local_similarities(*inputs, rounding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_BLOCK_NUMBERS", block)
        blocks = [(rows, part.clone()) for rows, part in similarity_blocks(*inputs, rounding)]
    torch.testing.assert_close(torch.cat([part for _, part in blocks]), expected)
    assert [row for rows, _ in blocks for row in range(sets_)[rows]] == list(range(sets_))
    assert len(blocks) == {DIM: sets_, 9 * DIM: (sets_ + 1) // 2}.get(block, 1)
    [(rows, whole)] = similarity_blocks(*(value.requires_grad_() for value in inputs), rounding)
    assert rows == slice(0, sets_) and torch.equal(whole, expected) and whole.requires_grad


@pytest.mark.parametrize(("threads", "rows"), [(1, 3), (2, 6), (256, 24)])
def test_a_block_grows_with_a_few_threads(threads, rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(local, "_BLOCK_NUMBERS", 3 * DIM)
    given = torch.ones(100, 2, 1), torch.ones(100, 2, DIM), torch.ones(1, 1, DIM), torch.ones(3, DIM), torch.ones(3)
    assert [len(part) for _, part in similarity_blocks(*given)][:-1] == [rows] * ((100 - 1) // rows)


def test_a_gpu_works_on_more_at_once():
    assert sets.at_once(100, torch.device("cpu")) == 100
    assert sets.at_once(100, torch.device("cuda")) == 2**26


def test_memory_of_a_tile_does_not_grow_with_the_threads(monkeypatch):
    """What is computed again in a backward pass is as large as the tile."""
    images, captions = torch.ones(3, 36, 8), torch.ones(40_000, 2, 8)
    sizes = []
    for threads in (1, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        checked = sets.Sets.checked(images, captions, None, None)
        sizes.append([len(rows) for rows, _ in checked.caption_groups(len(images))])
    assert sizes[0] == sizes[1] and len(sizes[0]) > 1


@settings(deadline=None, max_examples=30)
@given(nodes=st.integers(1, 20), readers=st.integers(1, 20), scale=st.sampled_from([0.0, 1.0, 300.0]))
def test_the_softmax_of_a_short_axis_is_the_softmax(nodes, readers, scale):
    torch.manual_seed(nodes)
    logits = torch.randn(2, 3, readers, nodes, dtype=torch.float64).mul_(scale).requires_grad_()
    found, expected = _short_softmax(logits), logits.softmax(dim=-1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    of_found, of_expected = (torch.autograd.grad((part * weights).sum(), logits)[0] for part in (found, expected))
    torch.testing.assert_close(of_found, of_expected)
    half = logits.detach().bfloat16()
    torch.testing.assert_close(_short_softmax(half), half.float().softmax(dim=-1).bfloat16())


@pytest.mark.parametrize("lengths", [[3], [2, 4, 1, 2, 3]])
def test_saf_moves_its_statistics_once_for_each_caption_in_order(lengths):
    torch.manual_seed(0)
    captions = [torch.randn(length, DIM, dtype=torch.float64) for length in lengths]
    tile = make_tile([torch.randn(3, DIM, dtype=torch.float64) for _ in range(2)], captions, 7.0)
    together, one_by_one = (scorer_of("SAF", regions=3, dropout=0.0).train() for _ in range(2))
    for scorer in (together, one_by_one):
        scorer.v_global_w.eval()
    scores = together(tile.images, tile.captions, tile.lengths)
    columns = [one_by_one(tile.images, words[None], torch.tensor([len(words)])) for words in captions]
    torch.testing.assert_close(scores, torch.cat(columns, dim=1), **CLOSE)
    torch.testing.assert_close(together.state_dict(), one_by_one.state_dict(), **CLOSE)
    assert together.SAF_module.bn.num_batches_tracked == one_by_one.SAF_module.bn.num_batches_tracked


@pytest.mark.parametrize("training", [False, True])
def test_place_norm_without_a_mask_is_a_batch_norm(training):
    items = torch.randn(4, 3, DIM, dtype=torch.float64)
    ours, stock = (made(3).double().train(training) for made in (PlaceNorm, nn.BatchNorm1d))
    mask = torch.ones(4, 3, dtype=torch.bool)
    torch.testing.assert_close(ours(items, mask), stock(items), **CLOSE)
    torch.testing.assert_close(ours.state_dict(), stock.state_dict(), **CLOSE)


def test_place_norm_counts_real_items_only_and_leaves_other_places_alone():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    items = torch.randn(3, 3, DIM, dtype=torch.float64)
    ours = PlaceNorm(5).double()
    found = ours(items, mask)
    second = items[[0, 2], 1]
    expected = (second - second.mean()) / (second.var(unbiased=False) + ours.eps).sqrt()
    torch.testing.assert_close(found[[0, 2], 1], expected, **CLOSE)
    torch.testing.assert_close(ours.running_mean[1], 0.1 * second.mean(), **CLOSE)
    torch.testing.assert_close(ours.running_var[1], 0.9 + 0.1 * second.var(), **CLOSE)
    assert ours.running_mean[2:].eq(0).all() and ours.running_var[2:].eq(1).all()


def test_more_regions_than_the_network_was_made_for_are_a_mistake(tile):
    with pytest.raises(ItmError, match="images have 5 regions, this network was made for 3; use data with as many"):
        scorer_of("SAF", regions=3)(tile.images, tile.captions, tile.lengths, tile.regions)
    with pytest.raises(ItmError, match='unknown module "SGF"; did you mean SGR'):
        SGRAFScorer(DIM, 4, module="SGF")


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_regions_in_any_order_score_alike(kind, tile):
    scorer = scorer_of(kind)
    if kind != "DBL":
        norm = scorer.v_global_w.embedding_local[1]
        nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias), norm.reset_running_stats()
    images, captions = tile.images[[1, 4]], tile.captions[[4]]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    scores = scorer(images, captions, torch.tensor([6]))
    turned = scorer(images[:, order[order < 5]], captions[:, order], torch.tensor([6]))
    torch.testing.assert_close(scores, turned, **CLOSE)
