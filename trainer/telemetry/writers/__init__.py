"""Writers of a run's numbers: event files, metrics.jsonl."""
