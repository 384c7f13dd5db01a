"""Loads TensorFlow as `python -m trainer` does, without Keras: import it before TensorFlow."""

import gc
import importlib

from trainer.process import start_up

with start_up.without_the_unused(), start_up.without_collection():
    importlib.import_module("tensorflow")
    gc.freeze()
