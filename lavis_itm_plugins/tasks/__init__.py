"""LAVIS tasks."""
