"""The training loop, checkpoints and schedules behind `itm_runner`."""
