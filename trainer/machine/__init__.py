"""What this worker may use of its machine: cores, GPU, memory; and what there is."""
