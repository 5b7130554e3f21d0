"""BERT's word pieces without surprises: from a folder or a file, an environment variable, or the hub within seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_itm_plugins.encoders.text import VOCABULARY_VARIABLE, ask_hub
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

HUB_NAME = "bert-base-uncased"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieces:
    """The lines of a `vocab.txt`: enough to make the uncased tokeniser again, so checkpoints carry them.

    >>> pieces = WordPieces([*SPECIAL, "a", "dog"])
    >>> pieces.tokenizer().tokenize("A dog")
    ['a', 'dog']
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        missing = [word for word in SPECIAL if word not in self.words]
        if missing:
            raise ItmError(f"a BERT vocabulary holds {' '.join(SPECIAL)}, this one lacks {' '.join(missing)}")

    def __len__(self) -> int:
        return len(self.words)

    def __deepcopy__(self, _memo: Any) -> WordPieces:
        return self

    @classmethod
    def find(cls, path: str | None) -> WordPieces:
        """From `path` (a folder with `vocab.txt`, or the file), else LAVIS_ITM_BERT_VOCAB, else the hub.

        Raises ItmError, within seconds, when there is nothing.
        """
        given = path or os.environ.get(VOCABULARY_VARIABLE)
        if not given:
            return cls(_words_of_hub())
        file = user_path(given)
        file = file / "vocab.txt" if file.is_dir() else file
        name = "model.tokenizer_path" if path else VOCABULARY_VARIABLE
        try:
            return cls(file.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text file"
            raise ItmError(f"{name}: cannot read {file} ({reason}); give bert-base-uncased's vocab.txt") from None

    def save(self, path: str | Path) -> None:
        """Write a `vocab.txt`."""
        Path(path).write_text("\n".join(self.words) + "\n", encoding="utf-8")

    def tokenizer(self, added: Mapping[str, Any] | None = None) -> Any:
        """A `transformers.BertTokenizer` that lower-cases, with special tokens `added` behind the words."""
        from transformers import BertTokenizer

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.txt"
            self.save(file)
            tokenizer = BertTokenizer(str(file), model_max_length=512)
        if added:
            tokenizer.add_special_tokens(dict(added))
        return tokenizer


def _words_of_hub() -> list[str]:
    """Of the hub's cache on this machine, else of the hub."""
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(HUB_NAME, local_files_only=True)
    except (OSError, ValueError):
        ask_hub(
            HUB_NAME,
            setting_name="model.tokenizer_path",
            file="vocab.txt",
            instead=f"set it, or {VOCABULARY_VARIABLE}, to a copy of its vocab.txt",
        )
        tokenizer = BertTokenizer.from_pretrained(HUB_NAME)
    return sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)
