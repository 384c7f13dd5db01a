#!/usr/bin/env bash
# TensorBoard 2.21.0 with its data server 0.7.2, which it uses by default on Linux: a record of an
# event file whose checksum does not fit its content is shown, with the wrong value, without a word.
# With --load_fast=false the file is read up to that record, and no further.
#
# Guess before: whichever part of TensorBoard reads a file verifies the checksums that each record
# of it carries for that, and leaves out the record or what comes behind it.
# So a value that a disk or a copy has damaged is a point of a curve like any other.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorboard==2.21.0 tensorboard-data-server==0.7.2 \
  "setuptools<81"
cat > "$folder/write.py" <<'END'
import pathlib
import struct
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

writer = EventFileWriter(sys.argv[1])
for step, loss in enumerate((1.0, 2.0, 3.0, 4.0)):
    value = summary_pb2.Summary.Value(tag="loss", simple_value=loss)
    summary = summary_pb2.Summary(value=[value])
    writer.add_event(event_pb2.Event(step=step, wall_time=1.0 + step, summary=summary))
writer.close()
(file,) = pathlib.Path(sys.argv[1]).iterdir()
data = file.read_bytes()
three, other = struct.pack("<f", 3.0), struct.pack("<f", 3.5)  # They differ in one bit.
assert data.count(three) == 1
file.write_bytes(data.replace(three, other))
END
cat > "$folder/ask.py" <<'END'
import json
import sys
import time
import urllib.error
import urllib.request

url = f"http://localhost:{sys.argv[1]}/data/plugin/scalars/scalars?run=run&tag=loss"
for _ in range(60):
    time.sleep(1)
    try:
        with urllib.request.urlopen(url) as answer:
            points = json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        continue
    print(*(value for _, _, value in points))
    break
END
shown() {  # The values that a TensorBoard with these flags shows.
  local port=$((20000 + RANDOM % 20000))
  "$folder/venv/bin/tensorboard" --logdir="$folder/logs" --port="$port" "$@" \
    >>"$folder/log" 2>&1 &
  server=$!
  "$folder/venv/bin/python" "$folder/ask.py" "$port"
  kill "$server"
  wait "$server" 2>/dev/null || true
}

"$folder/venv/bin/python" "$folder/write.py" "$folder/logs/run"
by_default=$(shown)
slow=$(shown --load_fast=false)
echo "written: 1.0 2.0 3.0 4.0, of which 3.0 is 3.5 now; shown: $by_default; with --load_fast=false: $slow"
[[ $by_default == "1.0 2.0 3.5 4.0" && $slow == "1.0 2.0" ]]
# Seen: written: 1.0 2.0 3.0 4.0, of which 3.0 is 3.5 now; shown: 1.0 2.0 3.5 4.0; with
# --load_fast=false: 1.0 2.0
