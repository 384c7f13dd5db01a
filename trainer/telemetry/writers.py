"""Metric writers: each takes scalars by tag, at a step, and keeps them somewhere."""

import contextlib
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import atomic_file

Scalars = Mapping[str, float]


@contextlib.contextmanager
def _tensorflow_errors_as_os_errors() -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


class Writer(Protocol):
    """Keeps scalars."""

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        """Keeps the scalars of a step.

        Args:
          step: counts from 1.
          scalars: values by tag.
          wall_time: when the step ended, seconds since 1970.

        Raises:
          OSError: it can't.
        """

    def flush(self) -> None:
        """Returns when all that was written is in its file."""

    def close(self) -> None:
        """Flushes what was written."""


class TensorBoardWriter:
    """Writes an event file, which TensorBoard follows while it grows."""

    def __init__(self, logdir: str, *, first_step: int = 1) -> None:
        """Creates the event file.

        Args:
          logdir: its folder.
          first_step: the first step that will be written; TensorBoard drops what an earlier event
            file of the folder says of that step and of later ones, so that a run which goes on
            from an older checkpoint shows each step once.
        """
        Path(logdir).mkdir(parents=True, exist_ok=True)
        goes_on = first_step > 1 or any(Path(logdir).glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time():017.6f}.{os.uname().nodename}.{os.getpid()}"
        self._records = tf.io.TFRecordWriter(str(Path(logdir) / name))
        now = time.time()
        self._put(tf1.Event(file_version="brain.Event:2", wall_time=now))
        if goes_on:
            start = tf1.SessionLog(status=tf1.SessionLog.START)
            self._put(tf1.Event(step=first_step, session_log=start, wall_time=now))

    def _put(self, event: tf1.Event) -> None:
        with _tensorflow_errors_as_os_errors():
            self._records.write(event.SerializeToString())

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        summary = tf1.Summary()
        for tag, value in scalars.items():
            summary.value.add(tag=tag, simple_value=value)
        self._put(tf1.Event(step=step, summary=summary, wall_time=wall_time))

    def flush(self) -> None:
        with _tensorflow_errors_as_os_errors():
            self._records.flush()

    def close(self) -> None:
        with _tensorflow_errors_as_os_errors():
            self._records.close()


class JsonLinesWriter:
    """Appends a line a step to a file: the step, and the same scalars under the same tags."""

    def __init__(self, path: str, *, first_step: int = 1) -> None:
        """Opens the file, without the lines of `first_step` and later that an earlier run left."""
        atomic_file.write_text(path, "".join(_lines_before(first_step, path)))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (close() closes it)

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        finite = {tag: v if math.isfinite(v) else None for tag, v in scalars.items()}
        self._file.write(json.dumps({"step": step, "wall_time": wall_time, **finite}) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines_before(first_step: int, path: str) -> Iterator[str]:
    """The whole lines in a metrics file that are of earlier steps."""
    if not Path(path).exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue  # Cut in the middle, or worse, by whatever ended that run.
            if step < first_step and line.endswith("\n"):
                yield line


class BackgroundWriter:
    """Hands scalars to other writers from a thread, so that no step waits for a disk.

    A writer that fails (a full disk, a vanished folder) is reported once; it gets later scalars
    all the same, in case that the trouble passes, and the run goes on.
    """

    FLUSH_SEC = 2.0

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self._queue: queue.SimpleQueue[Callable[[Writer], None] | None] = queue.SimpleQueue()
        self._reported: set[Writer] = set()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        self._queue.put(lambda writer: writer.write(step, scalars, wall_time=wall_time))

    def flush(self) -> None:
        done = threading.Event()
        self._queue.put(lambda writer: writer.flush())
        self._queue.put(lambda _: done.set())
        done.wait()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        """The thread: does what is in the queue to each writer, and flushes now and then."""
        flushed = time.monotonic()
        while (job := self._queue.get()) is not None:
            self._for_each_writer(job)
            if time.monotonic() - flushed > self.FLUSH_SEC:
                self._for_each_writer(lambda writer: writer.flush())
                flushed = time.monotonic()
        self._for_each_writer(lambda writer: writer.close())

    def _for_each_writer(self, job: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                job(writer)
            except OSError as error:
                if writer not in self._reported:
                    self._reported.add(writer)
                    what = f"{type(writer).__name__} cannot write ({error}); training goes on"
                    print(f"slim-horovod: {what}", file=sys.stderr, flush=True)


class NullWriter:
    """What ranks other than 0 get, and runs without a --logdir."""

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        del step, scalars, wall_time

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def create_writer(logdir: str | None, *, rank: int, first_step: int = 1) -> Writer:
    """The writer of a run's scalars: events and metrics.jsonl in `logdir`, from rank 0 alone."""
    if logdir is None or rank != 0:
        return NullWriter()
    return BackgroundWriter(
        [
            TensorBoardWriter(logdir, first_step=first_step),
            JsonLinesWriter(str(Path(logdir) / "metrics.jsonl"), first_step=first_step),
        ]
    )
