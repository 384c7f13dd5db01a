"""Writes `<logdir>/status.json`: the state of a run, for programs that watch it."""

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from trainer.process import files, json_files

FILE_NAME = "status.json"


class Content(NamedTuple):
    """The content of the file.

    Attributes:
      state: running, finished, preempted or failed; None: there is no file that can be read.
      step: step of the newest checkpoint.
      reason: the reason for this state of the run, in one line.
    """

    state: str | None = None
    step: int = 0
    reason: str | None = None


def read(logdir: Path) -> Content:
    """Returns the status of a run; an empty one where there is none that can be read."""
    try:
        return json_files.build(Content, json_files.read(logdir / FILE_NAME))
    except (OSError, json_files.FormatError):
        return Content()


class Status:
    """The file {"state": ..., "step": ..., "reason": ...}, which only rank 0 writes."""

    def __init__(self, logdir: str | None, *, rank: int, has_begun: bool = False) -> None:
        """Prepares the file of a run, and writes nothing yet.

        Args:
          logdir: folder of the run; None: there is no file.
          rank: rank of this worker.
          has_begun: whether a failure replaces the status of a run that an earlier start finished.
        """
        self._path = Path(logdir) / FILE_NAME if logdir and rank == 0 else None
        self._step = 0 if self._path is None else read(self._path.parent).step
        self._has_begun = has_begun
        self._has_failed = False
        self._lock = threading.Lock()  # Threads of the watchdog and of a save set it, too.

    def _is_finished(self) -> bool:
        """Returns whether an earlier start of the run has finished it."""
        if self._path is None:
            return False
        return read(self._path.parent).state == "finished"

    def set(self, state: str, *, step: int | None = None, reason: str | None = None) -> None:
        """Replaces the status. Where it can't be written, the run goes on.

        A process that has failed ends: a save that is done meanwhile does not make it run again.

        Args:
          state: running, finished, preempted or failed.
          step: step of the newest checkpoint; None: as before.
          reason: the reason for this state of the run, in one line.
        """
        with self._lock:
            self._has_begun = self._has_begun or state != "failed"
            if not self._has_begun and self._is_finished():
                return  # A start that is refused changes nothing of a run that is complete.
            if step is not None:
                self._step = step
            self._has_failed = self._has_failed or state == "failed"
            if self._path is None or (self._has_failed and state == "running"):
                return
            text = json.dumps({"state": state, "step": self._step, "reason": reason})
            try:
                files.write_text(self._path, text + "\n")
            except OSError as error:
                if state == "failed":
                    return  # The reason of a failure is printed elsewhere.
                with contextlib.suppress(OSError):
                    print(
                        f"slim-horovod: {self._path} cannot be written ({error})", file=sys.stderr
                    )
