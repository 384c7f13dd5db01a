#!/usr/bin/env bash
# TensorFlow 2.21.0: each function that AutoGraph converts, a lambda given to tf.data.Dataset.map for
# instance, is written as a Python file into the folder for temporary files, and stays there until
# the interpreter ends by itself: a program that is killed, or calls os._exit, leaves it for ever.
#
# Guess before: the converted function is compiled in memory; if there is a file at all, for
# tracebacks, it is gone once it has been imported, or unlinked by the system with its process.
# Cause: the file is removed by a handler of atexit.
# A training that is preempted, and started again by each of many workers, fills /tmp with files.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/convert.py" <<'END'
import os, signal, sys
import tensorflow as tf

data = tf.data.Dataset.range(3).map(lambda number: number + 1)
assert [int(number) for number in data] == [1, 2, 3]
if "kill" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
END
cd "$folder"
export TF_CPP_MIN_LOG_LEVEL=3
left() {
  mkdir "$folder/$1"
  TMPDIR="$folder/$1" "$folder/venv/bin/python" convert.py "$1" > /dev/null 2>&1 || true
  find "$folder/$1" -name '__autograph_generated_file*.py' | wc -l
}
ended=$(left end)
killed=$(left kill)
echo "files left by a program that ends: $ended, by one that is killed: $killed"
[[ $ended == 0 && $killed == 1 ]]
# Seen: 0 and 1.
