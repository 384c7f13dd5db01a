"""Decodes valid and damaged images of a format by Pillow, as the trainer does: FORMAT COUNT.

Prints how many were decoded and how many refused. A decoder that ends the process is told by the
exit status.
"""

import io
import sys
import warnings

import numpy as np
from PIL import Image

from trainer.inputs.images import by_pillow, encoded
from trainer.inputs.source import BadImageError

# Pillow's name of each format: the modes and the options of saving that are tried.
KINDS = {
    "WEBP": (("RGB", "RGBA", "L"), ({}, {"lossless": True}, {"save_all": True})),
    "GIF": (("L", "P", "RGB"), ({}, {"save_all": True})),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), ({},)),
    "TIFF": (
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}),
    ),
    "AVIF": (("RGB", "RGBA", "L"), ({}, {"save_all": True})),
    "JPEG2000": (("L", "LA", "RGB", "RGBA", "I;16"), ({}, {"irreversible": True})),
}


def create(random, name, number):
    """A valid image of random size, mode, smoothness and options."""
    modes, options = KINDS[name]
    mode = modes[number % len(modes)]
    height, width = random.integers(1, 80, 2)
    detail = int(random.integers(1, 8))
    coarse = random.integers(0, 256, (height // detail + 1, width // detail + 1, 3))
    image = Image.fromarray(coarse.astype(np.uint8)).resize((int(width), int(height)))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    chosen = dict(options[random.integers(len(options))])
    if chosen.get("save_all"):
        chosen["append_images"] = [image.copy()] * int(random.integers(1, 3))
    out = io.BytesIO()
    image.save(out, name, **chosen)
    return out.getvalue()


def damage(random, data):
    """The same image, cut off, or with bytes changed anywhere or in its header; or as it is."""
    kind = random.integers(4)
    if kind == 1:
        return data[: random.integers(1, len(data))]
    changed = bytearray(data)
    if kind > 1:
        end = len(data) if kind == 2 else min(64, len(data))
        for place in random.integers(0, end, random.integers(1, 6)):
            changed[place] = random.integers(256)
    return bytes(changed)


def main():
    name, count = sys.argv[1], int(sys.argv[2])
    random = np.random.default_rng(0)
    warnings.simplefilter("ignore")
    decoded = refused = 0
    for number in range(count):
        data = damage(random, create(random, name, number))
        try:
            header = encoded.read_header(data)
            if encoded.FORMATS[header.format].decode is None:
                pixels = by_pillow.decode(data)
                if pixels.shape != (header.height, header.width, 3) or pixels.dtype != np.uint8:
                    raise SystemExit(f"{pixels.shape} {pixels.dtype}, where {header} was told")
            decoded += 1
        except BadImageError:
            refused += 1
    print(decoded, refused)


if __name__ == "__main__":
    main()
