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
    """One row of recalls for each name; i2t finds captions for an image (`txt_*`), t2i images for a caption.

    A last column has Kendall's tau against relevance labels where a row has it.
    """
    header = ["", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum"]
    lines = [[name, *(f"{metrics[key]:.1f}" for key in RECALLS)] for name, metrics in rows.items()]
    if any("tau" in metrics for metrics in rows.values()):
        header.append("tau")
        for line, metrics in zip(lines, rows.values(), strict=True):
            line.append(_decimal(metrics.get("tau")))
    return text_table(header, lines)


def graded_table(metrics: Mapping[str, float]) -> str:
    """Metrics against relevance labels, a row for each direction; the last column counts queries without a tau."""
    names = ("tau", "tau10", "tau50", "ndcg", "ncs1", "ncs10", "rprecision", "map_r")
    header = ["", "tau", "tau@10", "tau@50", "nDCG", "NCS@1", "NCS@10", "R-P", "mAP@R", "no tau"]
    rows = [
        [name, *(_decimal(metrics.get(f"{side}_{key}")) for key in names), f"{metrics[f'{side}_tau_undefined']:.0f}"]
        for name, side in (("i2t", "txt"), ("t2i", "img"))
    ]
    return text_table(header, rows)


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
