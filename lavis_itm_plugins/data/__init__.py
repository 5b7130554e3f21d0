"""Data sets: annotations, features, builders and generated scenes."""
