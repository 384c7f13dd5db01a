"""The graph of a step, from a batch to its update: no files, no console, no telemetry."""
