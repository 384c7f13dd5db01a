"""Protection of a run: locks, signals, watchdogs, agreement of all workers, its status file."""
