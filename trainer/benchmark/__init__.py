"""The parts of --mode=benchmark: what is timed, how, and what is made of the times."""
