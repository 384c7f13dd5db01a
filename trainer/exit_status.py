"""Exit statuses of the program, besides 0 (done) and 1 (a mistake, or another worker's end).

srun and mpirun pass them on; horovodrun as released turns them into 1.
"""

PREEMPTED = 75  # EX_TEMPFAIL: asked to stop, saved; the same command resumes.
HUNG = 79  # The watchdog saw no step for too long.
ORPHANED = 80  # The launcher is gone.
OUT_OF_MEMORY = 81  # A batch does not fit.
INTERRUPTED = 130  # By Ctrl-C, in training by the second; shells use this number for it.
