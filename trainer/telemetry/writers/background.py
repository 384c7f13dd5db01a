"""A writer that works in a thread, so that no step waits for a disk."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.telemetry.writers.protocol import Scalars, Writer

_Job = Callable[[Writer], None]


class BackgroundWriter:
    """Passes everything on to other writers, in a thread.

    Where one fails (a full disk, a vanished folder), each kind of error is reported once, for all
    of them; later writes are tried all the same, since the error may pass, and the run goes on.
    """

    FLUSH_SEC = 2.0

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reported: set[int | None] = set()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Scalars, *, wall_time: float) -> None:
        self._queue.put(lambda writer: writer.write(step, scalars, wall_time=wall_time))

    def write_summary(self, step: int, summary: tf1.Summary, *, wall_time: float) -> None:
        self._queue.put(lambda writer: writer.write_summary(step, summary, wall_time=wall_time))

    def write_graph(self, graph: tf.Graph) -> None:
        self._queue.put(lambda writer: writer.write_graph(graph))

    def flush(self) -> None:
        done = threading.Event()
        self._queue.put(lambda writer: writer.flush())
        self._queue.put(lambda _: done.set())
        while not done.wait(timeout=1.0) and self._thread.is_alive():
            pass  # A slow disk is no reason to give up.

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Runs the thread: passes the queue on to each writer, and flushes now and then."""
        flushed = time.monotonic()
        while True:
            try:
                job = self._queue.get(timeout=self.FLUSH_SEC)
            except queue.Empty:
                self._for_each_writer(lambda writer: writer.flush())
                flushed = time.monotonic()
                continue
            if job is None:
                break
            self._for_each_writer(job)
            if time.monotonic() - flushed > self.FLUSH_SEC:
                self._for_each_writer(lambda writer: writer.flush())
                flushed = time.monotonic()
        self._for_each_writer(lambda writer: writer.close())

    def _for_each_writer(self, job: _Job) -> None:
        for writer in self._writers:
            try:
                job(writer)
            except OSError as error:
                if error.errno not in self._reported:
                    self._reported.add(error.errno)
                    with contextlib.suppress(OSError):  # stderr may be a file on the same disk.
                        print(
                            f"slim-horovod: the logs cannot be written ({error}); training goes "
                            "on, and it is tried again",
                            file=sys.stderr,
                            flush=True,
                        )
