"""This process, before TensorFlow is loaded: nothing here imports it."""
