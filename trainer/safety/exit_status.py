"""What a training process ends with, besides 0 (done) and 1 (a mistake, or another worker's end).

Launchers pass them on as they like: srun and mpirun do, horovodrun makes 1 of them.
"""

PREEMPTED = 75  # EX_TEMPFAIL: asked to stop, saved; the same command goes on.
HUNG = 79  # The watchdog saw no step for too long.
ORPHANED = 80  # The launcher is gone.
INTERRUPTED = 130  # By a second SIGINT, as a shell tells it.
