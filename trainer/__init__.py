"""Trains, evaluates, benchmarks and exports tf-slim image classifiers, on one device or many."""
