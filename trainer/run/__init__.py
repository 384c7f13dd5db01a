"""One training run, put together: its start, its loop's guard and monitor, its end."""
