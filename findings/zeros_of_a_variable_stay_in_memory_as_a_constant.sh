#!/usr/bin/env bash
# A session of TensorFlow 2.21.0 (tf.compat.v1) holds variables that begin with tf.zeros twice, if
# each has at most 10 MiB: zeros of that size are made constants before the first run, which the
# session keeps for further runs of the initializer, and each variable gets a copy.
# OptimizerOptions.max_folded_constant_in_bytes alone does not change it: two optimizers fold
# constants, and that limit is the second one's.
#
# Guess before: the initializer's run computes the zeros and gives them to the variable without a
# copy; and where constants are folded, a limit of 1 KiB for them ends that.
# So a tf.compat.v1 optimizer with slots (momentum: one, Adam: two) takes the memory of its slots
# twice with most networks, whose layers are below 10 MiB each.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2>"$folder/pip.txt"
cat > "$folder/run.py" <<'END'
import sys

import tensorflow as tf
import tensorflow.compat.v1 as tf1

COUNT = 32
SHAPE = [9, 2**18]  # 9 MiB of float32.
BEGINNINGS = {
    "tf.zeros": lambda: tf.zeros(SHAPE),
    "limited": lambda: tf.zeros(SHAPE),
    "stateful": lambda: tf.raw_ops.Empty(shape=SHAPE, dtype=tf.float32, init=True),
}


def read_resident_mib():
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmRSS"].split()[0]) / 2**10


kind = sys.argv[1]
config = tf1.ConfigProto()
if kind == "limited":
    config.graph_options.optimizer_options.max_folded_constant_in_bytes = 2**10
with tf.Graph().as_default():
    values = [tf1.Variable(BEGINNINGS[kind], use_resource=True) for _ in range(COUNT)]
    initializer = tf1.variables_initializer(values)
    with tf1.Session(config=config) as session:
        session.run(tf.constant(0))  # What a first run takes is no part of it.
        before = read_resident_mib()
        session.run(initializer)
        print(round((read_resident_mib() - before) / (9 * COUNT), 1))
END
cd "$folder"
for kind in tf.zeros limited stateful; do
  "$folder/venv/bin/python" run.py "$kind" 2>"$folder/log.txt" >"$folder/$kind" ||
    { tail -3 "$folder/log.txt"; exit 1; }
  echo "memory by that of the variables, $kind: $(cat "$folder/$kind")"
done
python3 - <<'END'
plain, limited, stateful = (float(open(name).read()) for name in ("tf.zeros", "limited", "stateful"))
assert plain > 1.8 and limited > 1.8
assert stateful < 1.3
END
