"""Recalls as a table of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RECALLS = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10", "rsum")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right.

    >>> print(text_table(["", "R@1"], [["a", "10.0"], ["bb", "9.5"]]))
         R@1
    a   10.0
    bb   9.5
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One row of recalls for each name; i2t finds captions for an image (`txt_*`), t2i images for a caption."""
    header = ["", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum"]
    return text_table(header, [[name, *(f"{metrics[key]:.1f}" for key in RECALLS)] for name, metrics in rows.items()])
