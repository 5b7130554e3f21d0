"""The `lavis-itm` command."""
