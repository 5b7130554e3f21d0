"""Image-text matching networks, registered as LAVIS models."""
