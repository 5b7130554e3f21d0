"""Mining into a store: section by section, by all ranks; killed at any moment, a new start goes on."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lavis_itm_plugins.distributed import barrier, from_first_rank, rank, world_size
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining.mine import MiningJob, joined_lists, progress
from lavis_itm_plugins.mining.running import Keys, RunningTopK
from lavis_itm_plugins.mining.store import array_digest, fingerprint_of, is_complete, write_candidates, write_json

log = logging.getLogger(__name__)

# More sections lose less when killed; each holds lists of all captions until they are joined.
SECTIONS = 8


def build_candidates(root: str | Path, job: MiningJob, made_from: Mapping[str, Any]) -> Path:
    """The folder `root/FINGERPRINT` of the lists; mined unless it is there.

    Every rank calls it; the sections are dealt to them, and `root` must be a folder that all of them see. The folder
    gets its name only when it is whole; a finished section is kept until then, and gives the same bytes when the rest
    is mined later. A second process that wants the same lists waits for the first. Raises ItmError when nothing can be
    written; what was there is then untouched.
    """
    root = Path(root)
    folder = root / fingerprint_of(made_from)
    if from_first_rank(rank() == 0 and is_complete(folder)):
        return folder
    part = root / f".{folder.name}.part"
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True)
        with _only_process(root / f".{folder.name}.lock"):
            # another process may have mined it meanwhile
            if not from_first_rank(rank() == 0 and is_complete(folder)):
                part.mkdir(exist_ok=True)
                sections = _Sections(part, job)
                sections.mine(rank(), world_size())
                barrier()
                if rank() == 0:
                    sections.join(made_from)
                    _put_in_place(part, folder)
    barrier()
    return folder


class _Sections:
    """The images in a few parts, each with the lists of its images and what the captions find among them."""

    def __init__(self, part: Path, job: MiningJob) -> None:
        self.part, self.job = part, job
        blocks = job.blocks()
        count = max(1, min(len(blocks), max(SECTIONS, world_size())))
        self.sections = [[blocks[i] for i in some] for some in np.array_split(np.arange(len(blocks)), count)]

    def mine(self, own: int, ranks: int) -> None:
        """Those of this rank that are not on the disk; what the others found already raises the thresholds."""
        by_caption = self.job.tiles.caption_lists()
        mine, wanted = self.sections[own::ranks], []
        for section in mine:
            if self._is_done(section):
                by_caption.forget_below(self._load(section, "captions")[:, -1])
            else:
                wanted.append(section)
        if len(wanted) < len(mine):
            log.info("%d of %d sections are mined already", len(mine) - len(wanted), len(mine))
        with progress(sum(block.stop - block.start for section in wanted for block in section)) as bar:
            for section in wanted:
                self._mine_one(section, by_caption, bar)

    def _mine_one(self, section: Sequence[slice], by_caption: RunningTopK, bar: Any) -> None:
        before = dict(self.job.limits.dropped)
        lists = {"images": self.job.mine_blocks(section, by_caption, bar), "captions": by_caption.take()}
        for kind, keys in lists.items():
            np.save(self._file(section, f"{kind}.npy"), keys)
        dropped = {name: count - before[name] for name, count in self.job.limits.dropped.items()}
        digests = {kind: array_digest(keys) for kind, keys in lists.items()}
        write_json(self._file(section, "json"), {**digests, "dropped": dropped})

    def join(self, made_from: Mapping[str, Any]) -> None:
        """Write the store's files from all sections, and delete these."""
        by_image = [np.empty((0, self.job.tiles.captions_per_image), np.int64)]
        by_image += [self._load(section, "images") for section in self.sections]
        by_caption = [self._load(section, "captions") for section in self.sections]
        for name in self.job.limits.dropped:
            self.job.limits.dropped[name] = sum(self._note(section)["dropped"][name] for section in self.sections)
        gained = joined_lists(lambda rows: [keys[rows] for keys in by_caption], by_caption[0])
        joined = self.job.result(np.concatenate(by_image), gained)
        write_candidates(self.part, joined, self.job.caption_image, made_from)
        for leftover in self.part.glob("section-*"):
            leftover.unlink()

    def _is_done(self, section: Sequence[slice]) -> bool:
        """Whether the section's files are as they were written."""
        try:
            note = self._note(section)
            return all(array_digest(self._load(section, kind)) == note[kind] for kind in ("images", "captions"))
        except (OSError, ValueError, KeyError):
            return False

    def _note(self, section: Sequence[slice]) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._file(section, "json").read_text(encoding="utf-8"))
        return content

    def _load(self, section: Sequence[slice], kind: str) -> Keys:
        keys: Keys = np.load(self._file(section, f"{kind}.npy"), mmap_mode="r")
        return keys

    def _file(self, section: Sequence[slice], kind: str) -> Path:
        span = f"{section[0].start}-{section[-1].stop}" if section else "none"
        return self.part / f"section-{span}.{kind}"


def _put_in_place(part: Path, folder: Path) -> None:
    if folder.exists():
        log.warning("%s was damaged; it was mined again", folder)
        shutil.rmtree(folder)
    os.replace(part, folder)


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Hold the lock on the first rank; the system frees it when the process ends, however it ends."""
    if rank() > 0:
        barrier()
        yield
        return
    with path.open("w") as lock:
        # not flock: data workers would inherit it
        fcntl.lockf(lock, fcntl.LOCK_EX)
        barrier()
        yield


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ItmError(
            f"cannot write candidate lists to {root}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from None
