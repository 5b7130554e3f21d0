"""itm_coder computes the reference's concepts, attention, fused scores, loss and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FIXTURES
from methods.coder_stubs import batch_of, make_coder
from torch.nn.functional import normalize

from lavis_itm_plugins.methods.coder_branches import ConceptBranch, fuse

FIXTURE = FIXTURES / "golden_coder.npz"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Golden:
    def __init__(self) -> None:
        self.archive = np.load(FIXTURE)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.archive[name])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def fill_branch(branch: ConceptBranch, golden: Golden) -> None:
    """The reference's graph and weights."""
    values = {
        "adjacency": "graph_ahat", "first": "gcn_w1", "second": "gcn_w2",
        "query.image.weight": "query_wq_v", "query.caption.weight": "query_wq_t", "key.weight": "query_wk",
    }  # fmt: skip
    if "words" in branch.state_dict():
        values["words"] = "gcn_e0"
    branch.load_state_dict({name: golden[value] for name, value in values.items()})


def golden_branch(golden: Golden, query: str = "dot") -> ConceptBranch:
    branch = ConceptBranch(torch.eye(9), None, 8, hidden=6, word_dim=7, query=query).double()
    if query == "dot":
        fill_branch(branch, golden)
    return branch


def test_golden_convolution_and_query(golden) -> None:
    branch = golden_branch(golden)
    concepts = branch.concepts()
    torch.testing.assert_close(concepts, golden["gcn_z"], **EXACT)
    for side, name in (("image", "v"), ("caption", "t")):
        vectors = golden[f"query_x_{name}"]
        torch.testing.assert_close(branch.attention(vectors, side, concepts), golden[f"query_att_{name}"], **EXACT)
        torch.testing.assert_close(branch(vectors, side, concepts), golden[f"query_c_{name}"], **EXACT)


def test_golden_query_by_products(golden) -> None:
    branch = golden_branch(golden, "mul")
    values = {"wx": branch.query["image"].weight, "bx": branch.query["image"].bias, "wz": branch.key.weight}
    values |= {"bz": branch.key.bias, "v": branch.mix.weight, "bv": branch.mix.bias}
    for name, parameter in values.items():
        parameter.data.copy_(golden[f"querymul_{name}"])
    vectors, concepts = golden["query_x_v"], golden["gcn_z"]
    torch.testing.assert_close(branch.attention(vectors, "image", concepts), golden["querymul_att"], **EXACT)
    torch.testing.assert_close(branch(vectors, "image", concepts), golden["querymul_c"], **EXACT)


def test_golden_fusion(golden) -> None:
    vectors = [(normalize(golden[f"query_x_{name}"], dim=1), golden[f"query_c_{name}"]) for name in ("v", "t")]
    images, captions = (fuse(x, c, float(golden["fuse_omega"])) for x, c in vectors)
    torch.testing.assert_close(images @ captions.T, golden["fuse_s"], **EXACT)


@pytest.mark.parametrize("case", ["step", "step_beta0_lamp0"])
def test_golden_step(golden, monkeypatch, case) -> None:
    """Loss and every gradient of a whole step: both branches, dictionaries, weights and labels."""
    full = case == "step"
    coder = make_coder(
        monkeypatch,
        dcl={"temperature": 0.07, "beta": 0.5 if full else 0.0},
        dictionary={"size": 13},
        concept={"hidden": 6, "word_dim": 7},
        labels={"prototypes": 5, "warmup_epochs": 0, "weight": 0.2 if full else 0.0},
    )
    coder.matcher.images.data.copy_(golden["step_xv"])
    coder.matcher.captions.data.copy_(golden["step_xt"])
    fill_branch(coder.concept, golden)
    coder.labels.load_state_dict({"prototypes": golden["proto"], "classifier": golden["label_wcls"]})
    names = {"image": "v", "caption": "t"}
    for key, dictionary in coder.keys.dictionaries.items():
        side, branch = key.split("_")
        dictionary.keys.copy_(golden[f"step_queue_{names[side]}_{branch[:4].replace('conc', 'con')}"])
        dictionary.image_ids.copy_(golden["step_gid_neg"][6:])
    keys = {
        branch: {side: golden[f"step_k_{name}_{short}"] for side, name in names.items()}
        for branch, short in (("instance", "inst"), ("concept", "con"))
    }
    monkeypatch.setattr(coder, "key_vectors", lambda _batch: keys)
    parts = coder(batch_of(list(range(6)), golden["dcl_gid"].tolist()))
    parts["loss"].backward()
    torch.testing.assert_close(parts["loss"].detach(), golden[f"{case}_total"], **EXACT)
    if full:
        found = torch.stack([parts["loss_instance"], parts["loss_concept"], parts["loss_labels"] / 0.2])
        torch.testing.assert_close(found, golden["step_parts_inst_con_label"], **EXACT)
    parameters = {
        "xv": coder.matcher.images, "xt": coder.matcher.captions, "e0": coder.concept.words,
        "w1": coder.concept.first, "w2": coder.concept.second, "wqv": coder.concept.query["image"].weight,
        "wqt": coder.concept.query["caption"].weight, "wk": coder.concept.key.weight, "wcls": coder.labels.classifier,
    }  # fmt: skip
    for name, parameter in parameters.items():
        if full or name != "wcls":
            torch.testing.assert_close(parameter.grad, golden[f"{case}_grad_{name}"], **EXACT, msg=name)
