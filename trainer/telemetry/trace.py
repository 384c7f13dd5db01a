"""Converts TensorFlow's traces to Chrome's format, for Perfetto (https://ui.perfetto.dev)."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorflow.tsl.profiler.protobuf import xplane_pb2

from trainer.process import files


def convert(space: xplane_pb2.XSpace) -> dict[str, Any]:
    """Returns a trace with a process per plane (a device, or the host), a thread per line."""
    events: list[dict[str, Any]] = []
    for process, plane in enumerate(space.planes, start=1):
        if not plane.lines:
            continue
        events.append(_name("process_name", process, 0, plane.name))
        for line in plane.lines:
            thread = line.display_id or line.id
            events.append(_name("thread_name", process, thread, line.display_name or line.name))
            events += _convert_line(plane, line, process, thread)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _convert_line(
    plane: xplane_pb2.XPlane, line: xplane_pb2.XLine, process: int, thread: int
) -> Iterator[dict[str, Any]]:
    for event in line.events:
        metadata = plane.event_metadata[event.metadata_id]
        yield {
            "ph": "X",
            "pid": process,
            "tid": thread,
            "name": metadata.display_name or metadata.name,
            "ts": line.timestamp_ns / 1e3 + event.offset_ps / 1e6,  # Like dur, in microseconds.
            "dur": event.duration_ps / 1e6,
        }


def write(source: Path, target: Path) -> None:
    """Converts an .xplane.pb file into a .json.gz file.

    Raises:
      OSError: one of them can't be read or written.
    """
    space = xplane_pb2.XSpace.FromString(source.read_bytes())
    files.write_bytes(target, gzip.compress(json.dumps(convert(space)).encode()))
