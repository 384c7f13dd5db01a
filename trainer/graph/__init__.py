"""Batches -> the tensors of a step: no files, no console, no telemetry."""
