"""Text files as people have them: read as UTF-8 or refused with one sentence."""

from __future__ import annotations

from pathlib import Path

from lavis_itm_plugins.errors import ItmError


def read_text(path: Path, *, missing: str = "check its path") -> str:
    """The text of a UTF-8 file, without a byte order mark; raises ItmError when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ItmError(f"{path} does not exist; {missing}") from None
    except UnicodeDecodeError as error:
        raise ItmError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -f latin1") from None
    except OSError as error:
        raise ItmError(f"cannot read {path}: {error.strerror}") from None


def read_lines(path: Path, *, missing: str = "check its path") -> list[str]:
    """The lines of a UTF-8 text file without line ends; raises ItmError when it cannot be read."""
    # splitlines() would also split at U+2028 and the like, which occur inside captions
    lines = read_text(path, missing=missing).split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def has_words(caption: str) -> bool:
    """Whether there is a letter or a digit in it.

    >>> has_words("two dogs"), has_words(" ... ")
    (True, False)
    """
    return any(character.isalnum() for character in caption)
