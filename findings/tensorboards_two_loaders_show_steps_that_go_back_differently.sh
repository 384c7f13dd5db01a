#!/usr/bin/env bash
# TensorBoard 2.21.0 with its data server 0.7.2: where the steps of a run go back, as after a restart
# from a checkpoint, the default loader drops what it had of the later steps; --load_fast=false, and
# every platform without that server, keeps both, and the curve goes back in time.
#
# Guess before: --load_fast changes how fast files are read, not what is shown. (The flag's help
# speaks of an experimental implementation, and of no differences.)
# So a curve that looks clean on one machine has a loop on another, unless the writer marks each start
# by an event with a SessionLog of status START, the first one too: from the second on both loaders
# drop what comes later than its step.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorboard==2.21.0 tensorboard-data-server==0.7.2 \
  "setuptools<81"
cat > "$folder/write.py" <<'END'
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

for run, is_marked in (("plain", False), ("marked", True)):
    writer = EventFileWriter(f"{sys.argv[1]}/{run}")
    for number, step in enumerate((0, 1, 2, 3, 2, 3)):
        if is_marked and number in (0, 4):
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            writer.add_event(event_pb2.Event(step=step, wall_time=1.0, session_log=start))
        value = summary_pb2.Summary.Value(tag="loss", simple_value=float(number))
        summary = summary_pb2.Summary(value=[value])
        writer.add_event(event_pb2.Event(step=step, wall_time=1.0 + number, summary=summary))
    writer.close()
END
cat > "$folder/ask.py" <<'END'
import json
import sys
import time
import urllib.error
import urllib.request

url = f"http://localhost:{sys.argv[1]}/data/plugin/scalars/scalars?tag=loss&run="
for _ in range(60):
    time.sleep(1)
    try:
        told = []
        for run in ("plain", "marked"):
            with urllib.request.urlopen(url + run) as answer:
                told.append(" ".join(f"{step}:{value:.0f}" for _, step, value in json.load(answer)))
    except (urllib.error.URLError, ConnectionError):
        continue
    print(" | ".join(told))
    break
END
shown() {  # What a TensorBoard with these flags shows of both runs.
  local port=$((20000 + RANDOM % 20000))
  "$folder/venv/bin/tensorboard" --logdir="$folder/logs" --port="$port" "$@" \
    >>"$folder/log" 2>&1 &
  server=$!
  "$folder/venv/bin/python" "$folder/ask.py" "$port"
  kill "$server"
  wait "$server" 2>/dev/null || true
}

"$folder/venv/bin/python" "$folder/write.py" "$folder/logs"
by_default=$(shown)
slow=$(shown --load_fast=false)
echo "steps 0 1 2 3 2 3; shown as step:value, plain | marked: $by_default"
echo "with --load_fast=false: $slow"
[[ $by_default == "0:0 1:1 2:4 3:5 | 0:0 1:1 2:4 3:5" ]]
[[ $slow == "0:0 1:1 2:2 3:3 2:4 3:5 | 0:0 1:1 2:4 3:5" ]]
# Seen: steps 0 1 2 3 2 3; shown as step:value, plain | marked: 0:0 1:1 2:4 3:5 | 0:0 1:1 2:4 3:5
# with --load_fast=false: 0:0 1:1 2:2 3:3 2:4 3:5 | 0:0 1:1 2:4 3:5
