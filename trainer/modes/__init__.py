"""The modes of --mode: a module for each, whose `run(config)` returns the exit status."""

import contextlib
import importlib
import os

from trainer.config import MODES, Config
from trainer.process import settings, start_up

# Names of modules, not modules: only the mode that runs is loaded, and no mode imports another.
TABLE = {mode: f"trainer.modes.{mode}" for mode in MODES}
# `doctor` examines the installed libraries in processes of their own, since one may fail to load.
_WITHOUT_TENSORFLOW = ("doctor",)


def run(config: Config) -> int:
    """Loads TensorFlow and runs the mode that `config` names; returns the exit status."""
    if config.mode not in _WITHOUT_TENSORFLOW:
        with contextlib.ExitStack() as contexts:
            if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
                contexts.enter_context(start_up.without_notes())
            settings.apply(settings.Moment.TENSORFLOW, config, has_gpu=settings.has_gpu())
            contexts.enter_context(start_up.without_keras())
            importlib.import_module("tensorflow")
    return importlib.import_module(TABLE[config.mode]).run(config)
