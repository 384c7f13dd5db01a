#!/usr/bin/env bash
# TensorFlow 2.21.0: within a tf.Graph, `a == b` of two tensors is whether they are one object, a
# Python bool, also where TensorFlow 2's behaviour is on; `a > b`, `a + b` and `a & b` add operations.
#
# Guess before: tensors compare by value since TensorFlow 2 (enable_tensor_equality), whatever
# builds the graph; the old meaning is back only after disable_v2_behavior().
# Cause: Tensor.__eq__ adds an operation only where tensor equality is on and eager execution is the
# outer mode. `with tf.Graph().as_default()` is not in it, while a tf.function's graph is.
# A bool is taken for a constant by whatever comes next, `(a == b) & mask` for instance, so that
# nothing fails: all comparisons are False.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/compare.py" <<'END'
import tensorflow as tf

print("tensor equality is on:", tf.Tensor._USE_EQUALITY)
with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
    a, b, mask = tf.constant([1, 2, 3]), tf.constant([1, 5, 3]), tf.constant([True] * 3)
    print("a == b in a tf.Graph:", a == b)
    print("(a == b) & mask:", session.run((a == b) & mask).tolist())
    print("(a >= b) & mask:", session.run((a >= b) & mask).tolist())
    print("tf.equal(a, b) & mask:", session.run(tf.equal(a, b) & mask).tolist())
equal = tf.function(lambda a, b: a == b)(tf.constant([1, 2, 3]), tf.constant([1, 5, 3]))
print("a == b in a tf.function:", equal.numpy().tolist())
END
cd "$folder"
said=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" compare.py 2>/dev/null)
echo "$said"
expected='tensor equality is on: True
a == b in a tf.Graph: False
(a == b) & mask: [False, False, False]
(a >= b) & mask: [True, False, True]
tf.equal(a, b) & mask: [True, False, True]
a == b in a tf.function: [True, False, True]'
[[ $said == "$expected" ]]
# Seen: these lines.
