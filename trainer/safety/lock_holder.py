"""Who holds a run's folder: what `<logdir>/run.lock` says. No TensorFlow."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from trainer.process import identity as process_identity
from trainer.process.identity import Process

FILE_NAME = "run.lock"


class Holder(NamedTuple):
    """The run that has a folder.

    Attributes:
      host: its name.
      process: rank 0's.
      identity: of the host's process numbers (`identity.host_identity`).
    """

    host: str
    process: Process
    identity: str

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.host}"

    def is_of_this_host(self) -> bool:
        """Whether its process can be looked up here."""
        return self.identity == process_identity.host_identity()


def of_this_process() -> Holder:
    """What this process puts into its locks."""
    process = process_identity.this_process()
    return Holder(os.uname().nodename, process, process_identity.host_identity())


def as_text(holder: Holder, beats: int) -> str:
    """The content of a lock.

    Args:
      holder: of it.
      beats: goes up as long as the holder is alive.
    """
    fields = {
        "host": holder.host,
        **holder.process._asdict(),
        "identity": holder.identity,
        "beats": beats,
    }
    return json.dumps(fields) + "\n"


def read(path: Path) -> tuple[Holder | None, str]:
    """Who holds a lock, and its text, which changes with every beat.

    A lock that can't be understood has no holder: it is of another version, or damaged.

    Raises:
      OSError: there is none, or it can't be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        fields: Any = json.loads(text)
        process = Process(int(fields["pid"]), int(fields["start_ticks"]))
        return Holder(str(fields["host"]), process, str(fields["identity"])), text
    except (ValueError, KeyError, TypeError):
        return None, text


def find_alive(logdir: Path) -> Holder | None:
    """The run that has a folder, if it is alive; None also where it is on another host.

    Raises:
      OSError: the lock can't be read.
    """
    try:
        holder, _ = read(logdir / FILE_NAME)
    except FileNotFoundError:
        return None
    is_alive = holder is not None and holder.is_of_this_host() and holder.process.is_alive()
    return holder if is_alive else None
