#!/usr/bin/env bash
# TensorFlow 2.21.0: tf.io.decode_and_crop_jpeg, whose documentation calls it equivalent to decoding
# and cropping, returns other pixels in the first and in the last column of the window.
#
# Guess before: the same pixels, since libjpeg decodes the blocks around a window anyway.
# Cause: in a JPEG that has a colour for four pixels, `fancy_upscaling` (the default) interpolates
# between neighbouring colours. At the window's borders there is no neighbour, although the decoder
# has read it: libjpeg is told to emit a part of a row. Without it both are the same, and so they are
# where the image is reduced (`ratio`), since then nothing is interpolated.
# A pipeline that caches decoded images and slices them trains on other borders than one that does
# not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 pillow==12.2.0
cat > "$folder/crop.py" <<'END'
import io

import numpy as np
import tensorflow as tf
from PIL import Image

random = np.random.default_rng(0)
colours = random.integers(0, 256, (10, 10, 3)).astype(np.uint8)
image = Image.fromarray(colours).resize((160, 160), Image.Resampling.BICUBIC)
file = io.BytesIO()
image.save(file, "JPEG", quality=90, subsampling="4:2:0")


def compare(**options):
    """Whether the first, the inner and the last columns of a window are those of the image."""
    whole = tf.io.decode_jpeg(file.getvalue(), channels=3, **options).numpy()
    window = [size // options.get("ratio", 1) for size in (32, 32, 64, 64)]
    top, left, height, width = window
    crop = tf.io.decode_and_crop_jpeg(file.getvalue(), window, channels=3, **options).numpy()
    same = crop == whole[top : top + height, left : left + width]
    return [bool(part.all()) for part in (same[:, 0], same[:, 1:-1], same[:, -1])]


print("first, inner, last column:", compare())
print("fancy_upscaling=False:", compare(fancy_upscaling=False))
print("ratio=2:", compare(ratio=2))
END
cd "$folder"
said=$(TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" crop.py 2>/dev/null)
echo "$said"
expected='first, inner, last column: [False, True, False]
fancy_upscaling=False: [True, True, True]
ratio=2: [True, True, True]'
[[ $said == "$expected" ]]
# Seen: these lines.
