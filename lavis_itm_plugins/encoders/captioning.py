"""VSRN's second task: telling the caption of an image from its regions.

A GRU encoder over the regions, and a decoder with additive attention under teacher forcing (Li et al., ICCV 2019, after
Venugopalan et al., S2VT, ICCV 2015). Names of weights as in github.com/KunpengLi1994/VSRN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class RegionReader(nn.Module):
    """Regions to states: Linear, dropout, GRU."""

    def __init__(self, region_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.vid2hid = nn.Linear(region_dim, hidden)
        nn.init.xavier_normal_(self.vid2hid.weight)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, regions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, R, hidden) and the last one (1, n, hidden) of regions (n, R, D), real ones first."""
        inputs = self.dropout(self.vid2hid(regions))
        packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.rnn(packed)
        return pad_packed_sequence(states, batch_first=True, total_length=regions.shape[1])[0], last


class Attention(nn.Module):
    """Additive attention: softmax over linear2(tanh(linear1([state of a region; state of the decoder])))."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1, bias=False)

    def of_regions(self, states: Tensor) -> Tensor:
        """The regions' part of linear1, the same for every word."""
        return states @ self.linear1.weight[:, : states.shape[2]].t() + self.linear1.bias

    def forward(self, state: Tensor, regions: Tensor, part: Tensor, real: Tensor) -> Tensor:
        """Context (n, hidden) of a decoder's state (n, hidden) over regions (n, R, hidden)."""
        own = state @ self.linear1.weight[:, state.shape[1] :].t()
        logits = self.linear2((part + own.unsqueeze(1)).tanh()).squeeze(-1).masked_fill(~real, float("-inf"))
        return (logits.softmax(dim=1).unsqueeze(1) @ regions).squeeze(1)


class Decoder(nn.Module):
    """The next word from the one before, the context and the state."""

    def __init__(self, words: int, word_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(words, word_dim), Attention(hidden)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(hidden + word_dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, words)
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, regions: Tensor, last: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """Log-probabilities (n, T - 1, words) of the words after each of ids (n, T)."""
        words, part, outputs = self.embedding(ids), self.attention.of_regions(regions), []
        for place in range(ids.shape[1] - 1):
            context = self.attention(last[0], regions, part, real)
            inputs = self.dropout(torch.cat([words[:, place], context], dim=1)).unsqueeze(1)
            output, last = self.rnn(inputs, last)
            outputs.append(output)
        return log_softmax(self.out(torch.cat(outputs, dim=1)), dim=-1)


class Captioner(nn.Module):
    """Negative log-likelihood of captions given the regions of their images."""

    def __init__(
        self, region_dim: int, words: int, *, hidden: int = 512, word_dim: int = 300, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.encoder = RegionReader(region_dim, hidden, dropout)
        self.decoder = Decoder(words, word_dim, hidden, dropout)

    def forward(self, regions: Tensor, real: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Of each caption (n,), summed over its words.

        Regions (n, R, D) with real ones first and their mask (n, R); word ids (n, T) from <start> to <end>, and how
        many are real (n,).
        """
        states, last = self.encoder(regions, real.sum(dim=1))
        likelihood = self.decoder(states, last, ids, real)
        following = ids[:, 1:]
        told = torch.arange(1, ids.shape[1], device=ids.device)[None] < lengths.to(ids.device)[:, None]
        return -(likelihood.gather(2, following.unsqueeze(-1)).squeeze(-1) * told).sum(dim=1)
