#!/usr/bin/env bash
# Pillow 13.0.0: of a grey TIFF in which 0 is white (PhotometricInterpretation 0), pixels of 8 bits are
# turned round when it is read, those of 16 bits are not: the same picture is a positive at 8 bits and
# a negative at 16.
#
# Guess before: one rule for all depths, since the tag means the same for all of them (TIFF 6.0, p. 37),
# and both come out as "grey, 0 is black" modes (L and I;16).
# Cause: the unpackers of WhiteIsZero data are named "L;I" and the like; for 16 bits there is none.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.2.6
cat > "$folder/read.py" <<'END'
import io

import numpy as np
from PIL import Image

# Tag 262 (PhotometricInterpretation), a short, one value.
ENTRY = b"\x06\x01\x03\x00\x01\x00\x00\x00"

for dtype in (np.uint8, np.uint16):
    darkest, brightest = 0, np.iinfo(dtype).max
    stored = np.array([[darkest, brightest]] * 2, dtype)
    out = io.BytesIO()
    Image.fromarray(stored).save(out, "TIFF")
    black_is_zero = out.getvalue()
    assert black_is_zero.count(ENTRY + b"\x01") == 1
    white_is_zero = black_is_zero.replace(ENTRY + b"\x01", ENTRY + b"\x00")
    for name, data in (("0 is black", black_is_zero), ("0 is white", white_is_zero)):
        image = Image.open(io.BytesIO(data))
        row = np.asarray(image)[0].tolist()
        print(f"{np.iinfo(dtype).bits} bits, {name}: mode {image.mode}, {row}")
END
said=$("$folder/venv/bin/python" "$folder/read.py")
echo "$said"
expected='8 bits, 0 is black: mode L, [0, 255]
8 bits, 0 is white: mode L, [255, 0]
16 bits, 0 is black: mode I;16, [0, 65535]
16 bits, 0 is white: mode I;16, [0, 65535]'
[[ $said == "$expected" ]]
# Seen: these lines.
