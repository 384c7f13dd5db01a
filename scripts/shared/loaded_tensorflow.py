"""Loads TensorFlow as the trainer does, which takes half as long: import it before TensorFlow."""

from trainer.config import Config
from trainer.machine import loading

loading.load_tensorflow(Config())
