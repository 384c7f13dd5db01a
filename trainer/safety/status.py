"""`<logdir>/status.json`: the state of a run, for programs that watch it."""

import contextlib
import json
import sys
import threading
from pathlib import Path

from trainer.process import files

FILE_NAME = "status.json"


class Status:
    """{"state": ..., "step": ..., "reason": ...}; rank 0 writes it, other ranks' write nothing."""

    def __init__(self, logdir: str | None, *, rank: int) -> None:
        self._path = Path(logdir) / FILE_NAME if logdir and rank == 0 else None
        self._step = 0
        self._lock = threading.Lock()  # A watching thread may have the last word.

    def set(self, state: str, *, step: int | None = None, reason: str | None = None) -> None:
        """Replaces the status. Where it can't be written, the run goes on all the same.

        Args:
          state: running, finished, preempted or failed.
          step: updates made, as far as they are saved. None: as before.
          reason: of the state, one line.
        """
        with self._lock:
            if step is not None:
                self._step = step
            if self._path is None:
                return
            text = json.dumps({"state": state, "step": self._step, "reason": reason})
            try:
                files.write_text(self._path, text + "\n")
            except OSError as error:
                if state == "failed":
                    return  # Why a run failed is told in any case.
                with contextlib.suppress(OSError):
                    print(
                        f"slim-horovod: {self._path} cannot be written ({error})", file=sys.stderr
                    )
