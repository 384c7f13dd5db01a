"""The event file, which TensorBoard reads while it grows."""

import os
import re
import time
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.graph import scopes
from trainer.inputs.sources import tfrecord
from trainer.telemetry.writers.growing_file import GrowingFile
from trainer.telemetry.writers.protocol import Scalars

_PREFIX = "events.out.tfevents."
_NAME = re.compile(rf"{re.escape(_PREFIX)}(\d+\.\d{{6}})\.")


class EventFileWriter:
    """Writes a new event file into a folder, beside those that are there.

    TensorBoard reads a folder's files one after the other; where a step of a tag comes again, it
    drops what it has of that step and of later ones. So as soon as another process, such as an
    evaluation of the run's newest checkpoint, has begun a file, this writer begins a new one:
    later events of the run must come later in the folder, too.
    """

    def __init__(self, logdir: str, *, first_step: int | None = None) -> None:
        """Names the event file; nothing is touched before the first flush.

        Args:
          logdir: folder of the file.
          first_step: first step that will be written: TensorBoard drops what earlier event files
            of the folder have of it and of later ones, so that a run which goes on from an older
            checkpoint, or starts from scratch, shows each step once. None: it drops nothing.
        """
        self._folder = Path(logdir)
        self._is_waiting = False  # Whether there are events that no flush has written.
        self._first_step = first_step  # None as soon as it is written.
        self._begin_file()

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        summary = tf1.Summary()
        for tag, value in scalars.items():
            summary.value.add(tag=tag, simple_value=value)
        self.write_summary(step, summary, wall_time=wall_time)

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        self._append(tf1.Event(step=step, summary=summary, wall_time=wall_time))

    def write_graph(self, graph: tf.Graph) -> None:
        definition = scopes.define_as_shown(graph)
        # TensorBoard draws a box for each function of the input and of conditions, beside the graph
        # and smaller than can be read: so are the parts of the graph then.
        definition.ClearField("library")
        data = definition.SerializeToString()
        self._append(tf1.Event(graph_def=data, wall_time=time.time()))

    def flush(self) -> None:
        self._file.flush()
        if self._is_waiting:
            self._first_step = None
        self._is_waiting = False

    def close(self) -> None:
        self._file.close()

    def _append(self, event: tf1.Event) -> None:
        if not self._is_waiting and _newest_name(self._folder) > self._named:
            self._file.close()
            self._begin_file()
        self._is_waiting = True
        self._file.append(_frame(event))

    def _begin_file(self) -> None:
        now = time.time()
        # TensorBoard reads files in the order of their names: this one has to come last, even after
        # files whose names are in the future, since a clock was fast.
        stamp = f"{max(now, _newest_name(self._folder) + 1e-6):017.6f}"
        self._named = float(stamp)
        name = f"{_PREFIX}{stamp}.{os.uname().nodename}.{os.getpid()}"
        header = _frame(tf1.Event(file_version="brain.Event:2", wall_time=now))
        if self._first_step is not None:
            start = tf1.SessionLog(status=tf1.SessionLog.START)
            header += _frame(tf1.Event(step=self._first_step, session_log=start, wall_time=now))
        self._file = GrowingFile(self._folder / name, header=header)


def _newest_name(folder: Path) -> float:
    """Returns the latest time in names of event files, seconds since 1970; 0: no files."""
    found = (_NAME.match(path.name) for path in folder.glob(f"{_PREFIX}*"))
    return max((float(match[1]) for match in found if match), default=0.0)


def _frame(event: tf1.Event) -> bytes:
    return tfrecord.frame(event.SerializeToString())
