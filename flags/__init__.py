"""The command line: absl flags that are defined from the fields of `trainer.config`."""
