"""Captions to vectors: a GRU over word ids, or a BERT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.encoders.pooling import POOLINGS, Pooling
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError


@dataclass(frozen=True)
class TextConfig:
    """`model.text`: which text encoder, and its sizes."""

    kind: str = setting("gru", choices=("gru", "bert"))
    word_dim: int = setting(300, low=1, help="size of the word embeddings (gru)")
    hidden: int = setting(512, low=1, help="GRU units in each direction")
    merge: str = setting("concat", choices=("concat", "mean"), help="how the two directions are joined")
    pooling: str = setting("max", choices=POOLINGS)
    dropout: float = setting(0.0, low=0, below=1, help="on word embeddings (gru) or last states (bert)")
    output_dropout: float = setting(0.0, low=0, below=1, help="on the pooled vector")
    max_words: int = setting(64, low=1, help="longer captions are cut")
    bert: str = setting("bert-base-uncased", help="folder or hub name (bert)")
    lr_scale: float = setting(1.0, low=0, help="learning-rate factor of the GRU or BERT; 0.1 for a pretrained BERT")


class GRUTextEncoder(nn.Module):
    """Word embeddings and a bidirectional GRU, (faithful pieces: Faghri et al., VSE++; Lee et al., SCAN).

    `forward(captions)` gives word states (n, T, width) and their mask (n, T).
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embed = nn.Embedding(len(vocabulary), config.word_dim, padding_idx=None)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.rnn = nn.GRU(config.word_dim, config.hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(config.dropout)
        self.width = config.hidden * (2 if config.merge == "concat" else 1)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of the real words; padding is 0 and masked."""
        ids, lengths = self.vocabulary.batch(captions, max_words=self.config.max_words)
        words = self.dropout(self.embed(ids.to(self.embed.weight.device)))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        if self.config.merge == "mean":
            states = torch.stack(states.chunk(2, dim=-1)).mean(dim=0)
        mask = torch.arange(states.shape[1], device=states.device)[None] < lengths.to(states.device)[:, None]
        return states, mask


class BertTextEncoder(nn.Module):
    """A BERT from a local folder, or from the hub by name; last hidden states (n, T, width) and their mask.

    Raises ItmError when neither the folder nor the hub has it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer, self.bert = load_bert(config.bert)
        self.dropout = nn.Dropout(config.dropout)
        self.width = self.bert.config.hidden_size

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of all tokens, [CLS] and [SEP] included."""
        limit = min(self.config.max_words, self.bert.config.max_position_embeddings)
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(self.bert.device)
        states = self.bert(**tokens).last_hidden_state
        return self.dropout(states), tokens["attention_mask"].bool()


def load_bert(name: str) -> tuple[object, nn.Module]:
    """Tokeniser and BERT from a folder with `config.json` and `vocab.txt`, or from the hub.

    A folder without weights gives a BERT with random ones.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = Path(name)
    if folder.is_dir():
        for file in ("config.json", "vocab.txt"):
            if not (folder / file).exists():
                raise ItmError(f"model.text.bert: {folder} has no {file}; give a BERT folder or a hub name")
        tokenizer = BertTokenizer.from_pretrained(name)
        if any((folder / file).exists() for file in ("pytorch_model.bin", "model.safetensors")):
            return tokenizer, BertModel.from_pretrained(name, add_pooling_layer=False)
        return tokenizer, BertModel(BertConfig.from_pretrained(name), add_pooling_layer=False)
    if os.sep in name and (name.startswith((os.sep, ".", "~")) or name.count(os.sep) > 1):
        raise ItmError(f"model.text.bert: folder {name} does not exist; give a BERT folder or a hub name")
    try:
        return BertTokenizer.from_pretrained(name), BertModel.from_pretrained(name, add_pooling_layer=False)
    except OSError as error:
        raise ItmError(
            f'model.text.bert: "{name}" is no local folder and could not be fetched from the hub '
            f"({str(error).splitlines()[0]}); give a folder with config.json, vocab.txt and weights"
        ) from None


class CaptionEncoder(nn.Module):
    """Text encoder, pooling over words, and a projection to the joint space when the widths differ."""

    def __init__(self, config: TextConfig, embed_dim: int, vocabulary: Vocabulary | None) -> None:
        super().__init__()
        if config.kind == "gru":
            if vocabulary is None:
                raise ItmError("a GRU text encoder needs a vocabulary; set model.vocab_path or name a data set")
            self.words: nn.Module = GRUTextEncoder(config, vocabulary)
        else:
            self.words = BertTextEncoder(config)
        self.pooling = Pooling(config.pooling)
        self.dropout = nn.Dropout(config.output_dropout)
        same = self.words.width == embed_dim
        self.projection = nn.Identity() if same else nn.Linear(self.words.width, embed_dim)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """One vector for each caption, (n, embed_dim), not normalised."""
        states, mask = self.words(captions)
        return self.dropout(self.pooling(self.projection(states), mask))
