"""A matcher from a checkpoint alone, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import DESCRIPTION, Matcher, matcher_state
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.registry import registered


def load_matcher(path: str | Path) -> Matcher:
    """The matcher of a checkpoint of ours, or of the best one in a run folder, in evaluation mode.

    Raises ItmError when the file is missing or does not say what it holds.
    """
    file = user_path(path)
    file = file / "checkpoint_best.pth" if file.is_dir() else file
    state = matcher_state(read_checkpoint(file), str(file))
    network = registered("model").get((state.get(DESCRIPTION) or {}).get("arch"))
    if network is None:
        raise ItmError(f"{file} does not say what network it is; give a checkpoint of this plugin")
    matcher: Matcher = network(None)
    matcher.load_checkpoint(file)
    return matcher.eval()
