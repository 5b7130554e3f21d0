"""Configuration files: finding, merging and checking them."""
