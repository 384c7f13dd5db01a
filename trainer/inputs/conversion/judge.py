"""Training's own decoder, by which scripts judge images: others take other images for good."""

import functools
import sys
from typing import TYPE_CHECKING

from trainer.config import Config
from trainer.inputs.images import encoded
from trainer.machine.loading import load_tensorflow

if TYPE_CHECKING:
    from trainer.inputs.images.decoder import Decoder


def load_decoder() -> "Decoder":
    """Returns the decoder of this process; the first call loads TensorFlow."""
    return _load_decoder(encoded.FORMATS)


@functools.cache
def _load_decoder(formats: tuple[encoded.Format, ...]) -> "Decoder":
    """Returns the decoder of the formats in the table."""
    del formats
    if "tensorflow" not in sys.modules:
        load_tensorflow(Config())
    from trainer.inputs.images.decoder import Decoder

    return Decoder()
