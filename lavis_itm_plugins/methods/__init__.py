"""Training methods: one paper, one file."""
