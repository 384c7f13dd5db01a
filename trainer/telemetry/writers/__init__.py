"""Where a run's numbers go: event files, metrics.jsonl."""
