"""The parts of its machine that this worker may use (cores, GPU, memory), and their description."""
