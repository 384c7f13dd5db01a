"""The modes of --mode: `trainer.modes.<mode>.run(config)` runs one, and returns its exit status."""
