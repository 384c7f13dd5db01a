"""Exit statuses of the program, besides 0 (done).

srun and mpirun pass them on; horovodrun as released turns them into 1.
"""

FAILED = 1  # What the same command may not meet again; Python's own for an uncaught exception.
MISTAKE = 2  # What the same command would meet again, as argparse has it for command lines.
PREEMPTED = 75  # EX_TEMPFAIL: asked to stop, saved; the same command resumes.
HUNG = 79  # The watchdog saw no step for too long.
ORPHANED = 80  # The launcher is gone.
OUT_OF_MEMORY = 81  # A batch does not fit.
INTERRUPTED = 130  # By Ctrl-C, in training by the second; shells use this number for it.
