"""Speed against stated references; `python -m benchmarks [--quick]` runs all."""
