"""A run's numbers for people: TensorBoard, JSON lines, the console. Only rank 0 writes."""
