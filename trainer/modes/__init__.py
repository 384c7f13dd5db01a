"""The modes of --mode: a module for each, whose `run(config)` returns the exit status."""

import functools
import importlib

from trainer.config import MODES, Config
from trainer.machine.loading import load_tensorflow
from trainer.process import launcher, streams

# Names of modules, not modules: only the mode that runs is loaded, and no mode imports another.
TABLE = {mode: f"trainer.modes.{mode}" for mode in MODES}
# `doctor` examines the installed libraries in processes of their own, since one may fail to load.
_WITHOUT_TENSORFLOW = ("doctor",)


def run(config: Config) -> int:
    """Loads TensorFlow and runs the mode that `config` names; returns the exit status."""
    if config.automatic:
        # Loaded where it is needed: most starts are not to wait for it.
        largest_batch = importlib.import_module("trainer.benchmark.largest_batch")
        config = largest_batch.find(config, functools.partial(print, flush=True))
    if config.mode == "train":
        streams.never_wait()  # Others depend on the run, from its first line on.
        if launcher.is_first():
            print("loading TensorFlow", flush=True)  # Which takes seconds.
    if config.mode not in _WITHOUT_TENSORFLOW:
        load_tensorflow(config)
    return importlib.import_module(TABLE[config.mode]).run(config)
