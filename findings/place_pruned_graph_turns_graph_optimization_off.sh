#!/usr/bin/env bash
# TensorFlow 2.21.0: a session with `graph_options.place_pruned_graph` runs its graph unoptimized:
# Grappler is left out, whatever rewrite_options say, and nothing is logged.
#
# Guess before: the option prunes what is not needed before operations are placed on devices, and
# what is left is optimized as ever; so it would save time in a program of many small fetches.
# Cause: the optimizer refuses a graph that was pruned first, and its refusals are no errors.
# The first step of a large network is much faster (there is no optimization), and all others are
# slower: no convolution is fused with its activation. (With its bias it is, by a later pass of
# oneDNN's.)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/place.py" <<'END'
import tensorflow.compat.v1 as tf

tf.disable_eager_execution()
images = tf.placeholder(tf.float32, [1, 8, 8, 3])
filters = tf.get_variable("filters", [3, 3, 3, 4])
bias = tf.get_variable("bias", [4])
result = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, filters, 1, "SAME"), bias))
initializer = tf.global_variables_initializer()
for is_pruned in (False, True):
    config = tf.ConfigProto()
    config.graph_options.place_pruned_graph = is_pruned
    with tf.Session(config=config) as session:
        session.run(initializer)
        seen = tf.RunMetadata()
        session.run(
            result,
            {images: [[[[0.0] * 3] * 8] * 8]},
            options=tf.RunOptions(output_partition_graphs=True),
            run_metadata=seen,
        )
    kinds = {node.op for graph in seen.partition_graphs for node in graph.node}
    alone = any(kind.endswith("Relu") for kind in kinds)
    print(f"place_pruned_graph={is_pruned}: the activation is an operation of its own: {alone}")
END
cd "$folder"
said=$(TF_CPP_MIN_LOG_LEVEL=1 "$folder/venv/bin/python" place.py 2> errors)
echo "$said"
expected='place_pruned_graph=False: the activation is an operation of its own: False
place_pruned_graph=True: the activation is an operation of its own: True'
[[ $said == "$expected" ]]
if grep -i "prune" errors; then exit 1; fi
# Seen: these lines, and no warning.
