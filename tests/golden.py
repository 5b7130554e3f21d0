"""Golden numbers: extracts in `fixtures`, and the archives that they are from where these are present."""

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def check_extract(part: Path, whole: Path) -> None:
    """Every array of the extract is that of the archive."""
    archive, extract = np.load(whole), np.load(part)
    assert extract.files
    for key in extract.files:
        np.testing.assert_array_equal(extract[key], archive[key])
