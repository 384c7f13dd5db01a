"""All that knows of `model.ckpt-N`: its names on disk, its manifest; saving and restoring it."""
