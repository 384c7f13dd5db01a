#!/usr/bin/env bash
# TensorBoard 2.21.0, HParams: an experiment that a run declares keeps neither its order of columns
# nor is it looked at which values differ. Columns are sorted by name, those first whose declaration
# says `differs`: it is taken from the file, also where all runs have the same value.
#
# Guess before: columns in the order in which the experiment lists them, and `differs`, which the
# server computes where no experiment is declared, computed here as well.
# So the flag that two runs differ in can be the last of forty columns, unless the writer has known
# before what later runs would differ in.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 tensorboard==2.21.0
cat > "$folder/write.py" <<'END'
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

infos = [
    api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_FLOAT64, differs=name == "momentum")
    for name in ("rate", "momentum", "decay", "batch")
]
for run, rate in (("one", 0.1), ("two", 0.2)):
    writer = EventFileWriter(f"{sys.argv[1]}/{run}")
    values = {"rate": rate, "momentum": 0.9, "decay": 1e-4, "batch": 32.0}
    for part in (summary.experiment_pb(infos, []), summary.session_start_pb(values)):
        data = summary_pb2.Summary.FromString(part.SerializeToString())
        writer.add_event(event_pb2.Event(summary=data, wall_time=1.0))
    writer.close()
END
cat > "$folder/ask.py" <<'END'
import json
import sys
import time
import urllib.error
import urllib.request

url = f"http://localhost:{sys.argv[1]}/data/plugin/hparams/experiment"
for _ in range(60):
    time.sleep(1)
    try:
        asked = json.dumps({"experimentName": ""}).encode()
        request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            infos = json.load(answer)["hparamInfos"]
    except (urllib.error.URLError, KeyError, ConnectionError):
        continue
    print(*(f"{info['name']}{'*' if info.get('differs') else ''}" for info in infos))
    break
END
cd "$folder"
"$folder/venv/bin/python" write.py "$folder/logs"
port=$((20000 + RANDOM % 20000))
"$folder/venv/bin/tensorboard" --logdir="$folder/logs" --port="$port" >log.txt 2>&1 &
server=$!
said=$("$folder/venv/bin/python" ask.py "$port")
echo "declared: rate momentum* decay batch; the runs differ in rate; shown: $said"
[[ $said == "momentum* batch decay rate" ]]
# Seen: declared: rate momentum* decay batch; the runs differ in rate; shown: momentum* batch decay rate
