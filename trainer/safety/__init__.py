"""What keeps a run from losing anything: locks, signals, watches, agreement of all workers."""
