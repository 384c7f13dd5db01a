"""The parts of the training step that `trainer.graph` puts together."""
