"""Loads TensorFlow without Keras, in half the time: import this before TensorFlow."""

import importlib

from trainer.process import start_up

with start_up.without_the_unused():
    importlib.import_module("tensorflow")
