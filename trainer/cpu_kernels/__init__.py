"""Compiled operations of this project for some CPUs, which take the place of TensorFlow's."""
