#!/usr/bin/env bash
# TensorFlow 2.21.0 with protobuf 7.36.2: a TFRecord file that is written twice from the same values
# by the same few lines, in two processes, has other bytes each time. The fields of a tf.train.Example
# are written in an order that each process chooses anew.
#
# Guess before: the order in which the fields were set, as in a dict of Python, or a sorted one; in
# any case the same for the same program, packages and machine.
# So checksums of shards tell nothing: whoever compares data sets, or resumes a conversion and checks
# what is there, has to serialize with deterministic=True, or to compare what the records hold.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 protobuf==7.36.2
cat > "$folder/write.py" <<'END'
import sys

import tensorflow as tf


def values(**kinds):
    return tf.train.Feature(**kinds)


features = {
    "image/encoded": values(bytes_list=tf.train.BytesList(value=[b"\xff\xd8\xff\xd9"])),
    "image/format": values(bytes_list=tf.train.BytesList(value=[b"JPEG"])),
    "image/height": values(int64_list=tf.train.Int64List(value=[375])),
    "image/width": values(int64_list=tf.train.Int64List(value=[500])),
    "image/class/label": values(int64_list=tf.train.Int64List(value=[1])),
    "image/class/text": values(bytes_list=tf.train.BytesList(value=[b"rose"])),
}
example = tf.train.Example(features=tf.train.Features(feature=features))
for name, is_deterministic in (("plain", None), ("deterministic", True)):
    with tf.io.TFRecordWriter(f"{sys.argv[1]}.{name}") as writer:
        writer.write(example.SerializeToString(deterministic=is_deterministic))
END
for number in 1 2 3 4 5; do
  "$folder/venv/bin/python" "$folder/write.py" "$folder/$number" 2>"$folder/log"
done
different() { sha256sum "$folder"/?."$1" | cut -d' ' -f1 | sort -u | wc -l; }
plain=$(different plain)
deterministic=$(different deterministic)
sizes=$(stat -c %s "$folder"/?.plain | sort -u | wc -l)
echo "5 processes wrote $plain different files of $sizes size, with deterministic=True $deterministic"
((plain > 1 && sizes == 1 && deterministic == 1))
# Seen: 5 processes wrote 5 different files of 1 size, with deterministic=True 1
