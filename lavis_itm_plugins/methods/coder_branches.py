"""The concept branch of CODER: a graph of concepts that images and captions query, and what is scored with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.base import Matcher

QUERIES = ("dot", "mul")
SIDES = ("image", "caption")


class ConceptBranch(nn.Module):
    """Concept vectors from a graph convolution, and the query that mixes them for an image or a caption.

    Z = l2(Ahat LeakyReLU(Ahat E W1) W2) (CVSE, Wang et al., ECCV 2020). A vector x becomes c = l2(sum_n a_n z_n) with
      dot: a = softmax(sharpness x cos(Wq x, Wk z_n))
      mul: a = softmax(sharpness x (v . (tanh(Wq x + b) * tanh(Wk z_n + b')) + b''))                        (CVSE's)
    Images and captions have a Wq each and share Wk. `words` (N, w) are fixed vectors, or None to learn them.
    """

    def __init__(
        self,
        adjacency: Tensor,
        words: Tensor | None,
        embed_dim: int,
        *,
        hidden: int | None = None,
        word_dim: int = 300,
        query: str = "dot",
        sharpness: float = 10.0,
    ) -> None:
        super().__init__()
        self.query_kind, self.sharpness = query, sharpness
        self.register_buffer("adjacency", adjacency)
        if words is None:
            self.words: Tensor = nn.Parameter(torch.randn(len(adjacency), word_dim) * word_dim**-0.5)
        else:
            self.register_buffer("words", normalize(words, dim=1))
        hidden = hidden or max(embed_dim // 2, 1)
        self.first = _uniform(self.words.shape[1], hidden)
        self.second = _uniform(hidden, embed_dim)
        biased = query == "mul"
        self.query = nn.ModuleDict({side: nn.Linear(embed_dim, embed_dim, bias=biased) for side in SIDES})
        self.key = nn.Linear(embed_dim, embed_dim, bias=biased)
        self.mix = nn.Linear(embed_dim, 1) if biased else None

    def concepts(self) -> Tensor:
        """Z, unit rows (N, embed_dim)."""
        with torch.autocast(self.first.device.type, enabled=False):
            hidden = leaky_relu(self.adjacency @ self.words @ self.first, 0.2)
            return normalize(self.adjacency @ hidden @ self.second, dim=1)

    def attention(self, vectors: Tensor, side: str, concepts: Tensor) -> Tensor:
        """Shares (n, N) of the concepts in each vector (n, embed_dim); rows sum to 1. `side`: image or caption."""
        with torch.autocast(self.first.device.type, enabled=False):
            asked, keys = self.query[side](vectors.to(concepts.dtype)), self.key(concepts)
            if self.mix is None:
                logits = normalize(asked, dim=1) @ normalize(keys, dim=1).T
            else:
                logits = (asked.tanh() * self.mix.weight) @ keys.tanh().T + self.mix.bias
            return (self.sharpness * logits).softmax(dim=1)

    def strongest(self, vectors: Tensor, side: str, count: int) -> tuple[list[list[int]], list[list[float]]]:
        """Rows and shares of the concepts with the largest shares in each vector, largest first."""
        concepts = self.concepts()
        shares, rows = self.attention(vectors, side, concepts).topk(min(count, len(concepts)), dim=1)
        return rows.tolist(), shares.tolist()

    def forward(self, vectors: Tensor, side: str, concepts: Tensor) -> Tensor:
        """Concept-level unit vectors (n, embed_dim)."""
        shares = self.attention(vectors, side, concepts)
        with torch.autocast(shares.device.type, enabled=False):
            return normalize(shares @ concepts, dim=1)


def _uniform(rows: int, columns: int) -> nn.Parameter:
    limit = columns**-0.5
    return nn.Parameter(torch.empty(rows, columns).uniform_(-limit, limit))


@dataclass(frozen=True)
class Fusion:
    """What a `FusedMatcher` is, apart from its weights: the matcher's settings, how concepts are asked, and the mix."""

    matcher: Any
    query: str
    sharpness: float
    weight: float


class FusedMatcher(nn.Module):
    """Both branches as one matcher: the cosines of the instance and the concept vectors, weighted and added.

    Each item is one unit vector [sqrt(weight) x ; sqrt(1 - weight) c], so any index of vectors serves it.
    """

    arch = "itm_coder"
    compute_sim_matrix = Matcher.compute_sim_matrix
    # its score is a product, whatever the matcher's is
    bytes_per_pair = Matcher.bytes_per_pair

    def __init__(self, matcher: Any, branch: ConceptBranch, weight: float) -> None:
        super().__init__()
        self.matcher, self.branch, self.weight = matcher, branch, weight
        self.training = matcher.training
        self.config = Fusion(matcher.config, branch.query_kind, branch.sharpness, weight)
        self.vocabulary = matcher.vocabulary
        # the matcher's head scores the best pairs of the fused scores again
        self.reranks = getattr(matcher, "reranks", False)

    @property
    def device(self) -> torch.device:
        """Where the matcher is."""
        return self.matcher.device

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Fused vectors (n, 2 embed_dim) of `samples["image"]`."""
        return self._fused(self.matcher.encode_images(samples), "image")

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Fused vectors (n, 2 embed_dim)."""
        return self._fused(self.matcher.encode_captions(captions), "caption")

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n_images, n_captions)."""
        with torch.autocast(self.device.type, enabled=False):
            return images.pooled @ captions.pooled.t()

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n,) of aligned pairs."""
        return (images.pooled * captions.pooled).sum(dim=1)

    def image_states(self, samples: Mapping[str, Any]) -> Tensor:
        """What the matcher's image-text matching head looks at."""
        return self.matcher.image_states(samples)

    def tokens(self, captions: Sequence[str]) -> Any:
        """Captions as the matcher's head reads them."""
        return self.matcher.tokens(captions)

    def itm_logits(self, image_states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """The head's logits (n, 2) of aligned pairs."""
        return self.matcher.itm_logits(image_states, tokens)

    def _fused(self, encoded: Encoded, side: str) -> Encoded:
        vectors = encoded.pooled
        concepts = self.branch(vectors, side, self.branch.concepts())
        return Encoded(pooled=fuse(vectors, concepts, self.weight))


def fuse(vectors: Tensor, concepts: Tensor, weight: float) -> Tensor:
    """Vectors (n, 2 d) whose products are weight <x, x'> + (1 - weight) <c, c'>.

    >>> one, other = torch.eye(2)[:1], torch.eye(2)[1:]
    >>> fuse(one, other, 0.9) @ fuse(one, one, 0.9).T
    tensor([[0.9000]])
    """
    return torch.cat([weight**0.5 * vectors, (1 - weight) ** 0.5 * concepts.to(vectors.dtype)], dim=1)
