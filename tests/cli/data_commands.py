"""What `lavis-itm data` is asked for again and again, and the table it prints."""

FEATURES = ("--to", "precomp", "--model", "resnet18", "--no-pretrained", "--image-size", "32", "--batch-size", "5")


def table(out):
    """The printed table: cells by split and column."""
    lines = [line.split("  ") for line in out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    header = next(row for row in rows if row[:1] == ["split"])
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows if row and row[0] in ("train", "val", "test")}
