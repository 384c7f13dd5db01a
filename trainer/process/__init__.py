"""Tasks of this process before TensorFlow is loaded: nothing here imports TensorFlow."""
