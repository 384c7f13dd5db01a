"""The first messages of a run: its workers."""

import os

from trainer.distributed import Group
from trainer.machine import environment
from trainer.telemetry.console import Console


def say_hello(group: Group, console: Console) -> list[str]:
    """Prints, on rank 0's console, where each worker runs. A collective.

    Returns:
      the name of each worker in messages, in order of rank.
    """
    worker = group.worker
    here = environment.describe(worker.local_rank, worker.local_size)
    name = f"worker {worker.rank} of {worker.size} ({here.host}, local rank {worker.local_rank})"
    workers = group.gather((name, f"{here.device}, {here.threads} of {os.cpu_count()} cores"))
    for each, place in workers:
        console.say(f"{each}: {place}")
    return [each for each, _ in workers]
