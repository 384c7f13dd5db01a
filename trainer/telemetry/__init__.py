"""Where a run's numbers go: TensorBoard, JSON lines, the console. Other ranks than 0 write none."""
