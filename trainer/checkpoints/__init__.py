"""Checkpoints: their names on disk, their manifest, and how they are saved, found and restored."""
