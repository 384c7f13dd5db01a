#!/usr/bin/env bash
# tf.data in TensorFlow 2.21.0: each iterator over one and the same dataset prepares the mapped
# function anew, with placement, partitioning among devices and the passes of each. It takes some
# 0.3 ms for each operation of the function, and as many times as the dataset is iterated over. A
# function with the attribute "experimental_ints_on_device", which is about where integers are on
# GPUs, is not partitioned, and starts in less than half of the time.
#
# Guess before: a function is prepared at its first call, as a tf.function is, and kept; the second
# iterator over a dataset starts in well below a millisecond, whatever the function's length.
# So an evaluation of a few batches, repeated after each epoch, can be mostly preparation.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 2>"$folder/pip.txt"
cat > "$folder/run.py" <<'END'
import statistics
import time

import tensorflow as tf

IMAGE = tf.TensorSpec([4, 4, 3], tf.float32)


def change(image, operations):
    for number in range(operations):
        image = image + number
    return image


def create(operations, **attributes):
    function = tf.function(
        lambda image: change(image, operations),
        input_signature=[IMAGE],
        experimental_attributes=attributes,
    )
    images = tf.data.Dataset.from_tensors(tf.zeros(IMAGE.shape))
    mapped = tf.raw_ops.MapDataset(
        input_dataset=tf.data.experimental.to_variant(images),
        other_arguments=[],
        f=function.get_concrete_function(),
        output_types=[IMAGE.dtype],
        output_shapes=[IMAGE.shape],
    )
    return tf.data.experimental.from_variant(mapped, IMAGE)


def read_sec(dataset):
    began = time.perf_counter()
    (_,) = dataset
    return time.perf_counter() - began


datasets = {
    "1 operation": create(1),
    "200 operations": create(200),
    "200 with the attribute": create(200, experimental_ints_on_device=True),
}
times = {name: [] for name in datasets}
for _ in range(20):
    for name, dataset in datasets.items():
        times[name].append(read_sec(dataset))
short, long, attribute = (1e3 * statistics.median(each[5:]) for each in times.values())
print(f"an iterator's start and end, ms: {short:.1f}, {long:.1f}, {attribute:.1f} ({', '.join(times)})")
assert long > 5 * short
assert attribute < long / 2
END
cd "$folder"
"$folder/venv/bin/python" run.py 2>"$folder/log.txt" || { tail -3 "$folder/log.txt"; exit 1; }
