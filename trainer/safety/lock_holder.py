"""Reads and writes the content of `<logdir>/run.lock`: which run holds the folder."""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from trainer.process import identity as process_identity
from trainer.process import json_files
from trainer.process.identity import Process

FILE_NAME = "run.lock"
# How long the counter in another host's lock must stand still until its run counts as dead: long
# enough for a file server that is slow to show other hosts a change.
SILENCE_SEC = 60.0


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


class Watch:
    """Tells, asked again and again, whether a run holds a folder.

    On this host its process is looked up; of another one, the text of the lock must change.
    """

    def __init__(self, logdir: Path, *, silence_sec: float = SILENCE_SEC) -> None:
        """Begins to watch.

        Args:
          logdir: folder of the run.
          silence_sec: how long another host's lock must be unchanged until its run counts as dead.
        """
        self._path = logdir / FILE_NAME
        self._silence_sec = silence_sec
        self._text = ""
        self._changed_sec = 0.0

    def may_be_alive(self) -> bool:
        """Returns whether the folder is held, as far as can be known by now."""
        try:
            holder, text = read(self._path)
        except OSError:
            return False
        if holder is not None and holder.is_of_this_host():
            return holder.process.is_alive()
        now_sec = time.monotonic()
        if text != self._text:
            self._text, self._changed_sec = text, now_sec
        return now_sec - self._changed_sec <= self._silence_sec


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
