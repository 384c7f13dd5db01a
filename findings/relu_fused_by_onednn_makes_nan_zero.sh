#!/usr/bin/env bash
# A ReLU behind batch normalization, or behind a convolution and its bias, in TensorFlow 2.21.0 on
# CPUs with oneDNN, which is on by default on newer x86 CPUs: the two are fused, and NaN comes out as
# 0. A ReLU alone keeps NaN, and so does the same graph with TF_ENABLE_ONEDNN_OPTS=0.
#
# Guess before: a ReLU of NaN is NaN on CPUs, as numpy's maximum has it and as TensorFlow's own tests
# of its ReLU have it, fused or not, with oneDNN or without.
# So batch normalization over a map with one NaN, whose statistics are NaN with all that it gives of
# that channel, is a channel of zeros in the forward pass, and the loss is finite.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/run.py" <<'END'
import os

import numpy as np
import tensorflow as tf

values = np.ones((1, 8, 8, 32), np.float32)
values[0, 4, 4, 7] = np.nan
kernel, bias = tf.fill([1, 1, 32, 32], 0.01), tf.zeros([32])
ones, zeros = tf.ones([32]), tf.zeros([32])


def norm(x):
    return tf.compat.v1.nn.fused_batch_norm(x, ones, zeros, is_training=True)[0]


def convolution(x):
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)


counts = []
for before in (tf.identity, norm, convolution):
    result = tf.function(lambda x, before=before: tf.nn.relu(before(x)))(values)
    counts.append(int(np.isnan(result).sum()))
print(f"oneDNN {os.environ['TF_ENABLE_ONEDNN_OPTS']}: NaN behind ReLU alone, norm, convolution", counts)
END
cd "$folder"
said=$(for onednn in 1 0; do
  TF_ENABLE_ONEDNN_OPTS=$onednn "$folder/venv/bin/python" run.py 2>>"$folder/log.txt"
done)
echo "$said"
[[ $said == 'oneDNN 1: NaN behind ReLU alone, norm, convolution [1, 0, 0]
oneDNN 0: NaN behind ReLU alone, norm, convolution [1, 64, 32]' ]]
