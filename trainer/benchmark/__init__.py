"""The parts of --mode=benchmark: the passes, the loop that times them, the figures of the times."""
