"""Reads and writes the content of `<logdir>/run.lock`: which run holds the folder."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from trainer.process import identity as process_identity
from trainer.process import json_files
from trainer.process.identity import Process

FILE_NAME = "run.lock"


class Holder(NamedTuple):
    """The run that holds a folder.

    Attributes:
      host: name of the host of rank 0.
      process: process of rank 0.
      identity: `identity.host_identity()` on that host.
    """

    host: str
    process: Process
    identity: str

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.host}"

    def is_of_this_host(self) -> bool:
        """Returns whether its process can be looked up by its number here."""
        return self.identity == process_identity.host_identity()


class _Content(NamedTuple):
    """The content of the file; see `as_text`."""

    host: str
    pid: int
    start_ticks: int
    identity: str
    beats: int


def of_this_process() -> Holder:
    """Returns this process as the holder of its locks."""
    process = process_identity.this_process()
    return Holder(os.uname().nodename, process, process_identity.host_identity())


def as_text(holder: Holder, beats: int) -> str:
    """Returns the content of a lock file.

    Args:
      holder: the holder of the lock.
      beats: a counter that the holder increases while it is alive.
    """
    fields = {
        "host": holder.host,
        **holder.process._asdict(),
        "identity": holder.identity,
        "beats": beats,
    }
    return json.dumps(fields) + "\n"


def read(path: Path) -> tuple[Holder | None, str]:
    """Reads a lock: returns its holder, and its text, which changes as long as the holder lives.

    The holder is None where the text can't be parsed: it is of another version, or damaged.

    Raises:
      OSError: there is no lock, or it can't be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        fields = json_files.build(_Content, json_files.parse(text))
    except json_files.FormatError:
        return None, text
    return Holder(fields.host, Process(fields.pid, fields.start_ticks), fields.identity), text


def may_be_alive(logdir: Path) -> bool:
    """Returns whether a run may hold a folder: on another host that can't be known."""
    try:
        holder, _ = read(logdir / FILE_NAME)
    except OSError:
        return False
    return holder is not None and (not holder.is_of_this_host() or holder.process.is_alive())


def find_alive(logdir: Path) -> Holder | None:
    """Returns the run that holds a folder, if it is alive; None also where it is on another host.

    Raises:
      OSError: the lock can't be read.
    """
    try:
        holder, _ = read(logdir / FILE_NAME)
    except FileNotFoundError:
        return None
    is_alive = holder is not None and holder.is_of_this_host() and holder.process.is_alive()
    return holder if is_alive else None
