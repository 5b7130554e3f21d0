"""Encoders of images and captions; no LAVIS outside the one that wraps its vision transformer."""
