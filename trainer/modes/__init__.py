"""The modes of --mode: a module for each, whose `run(config)` returns the exit status."""

import importlib
import os

from trainer.config import MODES, Config
from trainer.process import settings
from trainer.process.start_up_notes import without_start_up_notes

# Names of modules, not modules: only the mode that runs is loaded, and no mode imports another.
TABLE = {mode: f"trainer.modes.{mode}" for mode in MODES}
# `doctor` examines the installed libraries in processes of their own, since one may fail to load.
_WITHOUT_TENSORFLOW = ("doctor",)


def run(config: Config) -> int:
    """Loads TensorFlow and runs the mode that `config` names; returns the exit status."""
    if config.mode not in _WITHOUT_TENSORFLOW:
        is_level_given = "TF_CPP_MIN_LOG_LEVEL" in os.environ
        settings.apply(settings.Moment.TENSORFLOW, config, has_gpu=settings.has_gpu())
        if not is_level_given:
            with without_start_up_notes():
                importlib.import_module("tensorflow")
    return importlib.import_module(TABLE[config.mode]).run(config)
