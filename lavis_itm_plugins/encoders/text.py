"""Captions to vectors: a GRU over word ids, a BERT, or the bare words."""

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
from lavis_itm_plugins.paths import user_path

VOCABULARY_VARIABLE = "LAVIS_ITM_BERT_VOCAB"


@dataclass(frozen=True)
class TextConfig:
    """`model.text`: which text encoder, and its sizes."""

    kind: str = setting("gru", choices=("gru", "bert", "words"), help="words: no order, a few seconds an epoch")
    word_dim: int = setting(300, low=1, help="size of the word embeddings (gru, words)")
    hidden: int = setting(512, low=1, help="GRU units in each direction")
    bidirectional: bool = setting(True, help="false: the GRU reads forwards only")
    merge: str = setting("concat", choices=("concat", "mean"), help="how the two directions are joined")
    pooling: str = setting("max", choices=(*POOLINGS, "last"), help="last: the state at the last word (VSE++, VSRN)")
    dropout: float = setting(0.0, low=0, below=1, help="on word embeddings (gru, words) or last states (bert)")
    output_dropout: float = setting(0.0, low=0, below=1, help="on the pooled vector")
    max_words: int = setting(64, low=1, help="longer captions are cut")
    bert: str = setting("bert-base-uncased", help="folder or hub name (bert)")
    lr_scale: float = setting(1.0, low=0, help="factor for everything below the pooling; 0.1 for a pretrained BERT")


class _WordEmbeddings(nn.Module):
    """What encoders over a vocabulary share; `forward(captions)` gives states (n, T, width) and their mask (n, T)."""

    def __init__(self, config: TextConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.embed = nn.Embedding(len(vocabulary), config.word_dim, padding_idx=None)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(config.dropout)

    def ids(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Word ids (n, T) and their mask on the device, and lengths (n,) on the CPU."""
        ids, lengths = self.vocabulary.batch(captions, max_words=self.config.max_words)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return ids.to(self.embed.weight.device), mask.to(self.embed.weight.device), lengths


class WordTextEncoder(_WordEmbeddings):
    """Word embeddings alone: pooled, a bag of words. The cheapest encoder, and a hard one to beat on little data."""

    def __init__(self, config: TextConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.width = config.word_dim

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the real words; padding is 0 and masked."""
        ids, mask, _ = self.ids(captions)
        words = self.dropout(self.embed(ids[mask]))
        states = words.new_zeros((ids.numel(), self.width))
        # half of a batch is padding: dropout only over what is real, put in place by an index with a cheap backward
        states = states.index_copy(0, mask.flatten().nonzero()[:, 0], words)
        return states.view(*ids.shape, self.width), mask


class GRUTextEncoder(_WordEmbeddings):
    """Word embeddings and a GRU, in both directions unless told otherwise.

    Faithful pieces: Faghri et al., VSE++; Lee et al., SCAN.
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.rnn = nn.GRU(config.word_dim, config.hidden, batch_first=True, bidirectional=config.bidirectional)
        self.width = config.hidden * (2 if config.bidirectional and config.merge == "concat" else 1)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of the real words; padding is 0 and masked."""
        ids, mask, lengths = self.ids(captions)
        words = self.dropout(self.embed(ids))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        if self.config.bidirectional and self.config.merge == "mean":
            states = torch.stack(states.chunk(2, dim=-1)).mean(dim=0)
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
    """Tokeniser and BERT from a folder with `config.json` and `vocab.txt`, or from the hub by name.

    A folder without weights gives a BERT with random ones; one without `vocab.txt` takes the file that
    LAVIS_ITM_BERT_VOCAB names. A name is looked up in the local cache first, then on the hub.
    """
    folder = user_path(name)
    try:
        if folder.is_dir():
            return _bert_of_folder(folder)
        if name.startswith((os.sep, ".", "~")) or name.count(os.sep) > 1:
            raise ItmError(f"model.text.bert: folder {name} does not exist; give a BERT folder or a hub name")
        return _bert_of_hub(name)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ItmError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ItmError(f'model.text.bert: "{name}" cannot be read as a BERT ({reason})') from None


def _bert_of_folder(folder: Path) -> tuple[object, nn.Module]:
    from transformers import BertConfig, BertModel, BertTokenizer

    if not (folder / "config.json").exists():
        raise ItmError(f"model.text.bert: {folder} has no config.json; give a BERT folder or a hub name")
    words = folder / "vocab.txt"
    if not words.exists():
        words = user_path(os.environ.get(VOCABULARY_VARIABLE) or words)
    if not words.is_file():
        raise ItmError(f"model.text.bert: {words} does not exist; put vocab.txt there, or set {VOCABULARY_VARIABLE}")
    tokenizer = BertTokenizer.from_pretrained(str(folder)) if words.parent == folder else BertTokenizer(str(words))
    config = BertConfig.from_pretrained(str(folder))
    if len(tokenizer) > config.vocab_size:
        raise ItmError(f"model.text.bert: {words} has {len(tokenizer)} words, {folder} only knows {config.vocab_size}")
    if any((folder / file).exists() for file in ("pytorch_model.bin", "model.safetensors")):
        return tokenizer, BertModel.from_pretrained(str(folder), add_pooling_layer=False)
    return tokenizer, BertModel(config, add_pooling_layer=False)


def _bert_of_hub(name: str) -> tuple[object, nn.Module]:
    from transformers import BertModel, BertTokenizer

    def load(**how: bool) -> tuple[object, nn.Module]:
        words = BertTokenizer.from_pretrained(name, **how)
        return words, BertModel.from_pretrained(name, add_pooling_layer=False, **how)

    try:
        return load(local_files_only=True)
    except OSError:
        ask_hub(name)
        return load()


def ask_hub(
    name: str,
    *,
    setting_name: str = "model.text.bert",
    file: str = "config.json",
    instead: str = "name a folder with config.json, vocab.txt and weights",
) -> None:
    """One short question before the hub's client starts: by itself it repeats a failing one for two minutes."""
    import requests
    from huggingface_hub import constants, hf_hub_url
    from transformers.utils import is_offline_mode

    reason = ""
    if constants.HF_HUB_OFFLINE or is_offline_mode():
        reason = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    else:
        try:
            answer = requests.head(hf_hub_url(name, file), timeout=5, allow_redirects=True)
            reason = "" if answer.ok else f"answer {answer.status_code}"
        except (requests.RequestException, ValueError) as error:
            reason = type(error).__name__
    if reason:
        raise ItmError(
            f'{setting_name}: "{name}" is no local folder, not in the cache, and the hub does not give it ({reason}); '
            f"{instead}"
        )


class CaptionEncoder(nn.Module):
    """Text encoder, pooling over words, and a projection to the joint space when the widths differ."""

    def __init__(self, config: TextConfig, embed_dim: int, vocabulary: Vocabulary | None) -> None:
        super().__init__()
        if config.kind == "bert":
            self.words: nn.Module = BertTextEncoder(config)
        elif vocabulary is None:
            raise ItmError("a text encoder over words needs a vocabulary; set model.vocab_path or name a data set")
        else:
            self.words = (GRUTextEncoder if config.kind == "gru" else WordTextEncoder)(config, vocabulary)
        self.pooling = Pooling(config.pooling)
        self.dropout = nn.Dropout(config.output_dropout)
        same = self.words.width == embed_dim
        self.projection = nn.Identity() if same else nn.Linear(self.words.width, embed_dim)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """One vector for each caption, (n, embed_dim), not normalised."""
        states, mask = self.words(captions)
        return self.dropout(self.pooling(self.projection(states), mask))
