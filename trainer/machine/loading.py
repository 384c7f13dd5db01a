"""Loads TensorFlow into this process; nothing in this module needs it before."""

import contextlib
import gc
import importlib
import os

from trainer.config import Config
from trainer.process import settings, start_up


def load_tensorflow(config: Config) -> None:
    """Loads TensorFlow with its settings, without its notes and without what is not used of it.

    Args:
      config: the configuration of this run, on which some settings depend.
    """
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(start_up.without_collection())
        if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
            contexts.enter_context(start_up.without_notes())
        settings.apply(settings.Moment.TENSORFLOW, config, has_gpu=settings.has_gpu())
        contexts.enter_context(start_up.without_the_unused())
        tf = importlib.import_module("tensorflow")
        gc.freeze()  # Nor does the collector look through it later: 0.3 s until the first step.
    tf.config.experimental.enable_tensor_float_32_execution(config.model.tf32)
