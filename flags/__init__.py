"""The command line: absl flags, made from the fields of `trainer.config`."""
