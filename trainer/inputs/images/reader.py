"""A reader of encoded images by number, which caches them where asked and counts bad ones."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from absl import logging

from trainer import exit_status
from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import ConfigError, UserError
from trainer.inputs.images import by_pillow, encoded
from trainer.inputs.images.decoder import Decoder
from trainer.inputs.images.encoded import AGAIN, RAW, ImageHeader, read_header
from trainer.inputs.images.orientation import UPRIGHT
from trainer.inputs.images.reduction import Parts
from trainer.inputs.source import BadImageError, NotesBad, Split
from trainer.machine import free_memory

# Of one image, waiting in a chunk for the graph. The next ones are decoded when it is their turn:
# there are up to 32 in a chunk, and a chunk for each thread.
MOST_BYTES = 2**20
_SAMPLES = 64  # The number of images whose sizes tell how much memory a cache will need.


def _count_bytes(parts: Parts) -> int:
    """Returns the number of bytes of the pixels of the first part."""
    return 3 * int(parts.windows[0, 2]) * int(parts.windows[0, 3])


class Image(NamedTuple):
    """An example's image.

    Attributes:
      example: the number of the example.
      data: the encoded bytes; where the header's format is RAW, uint8 [height, width, 3] or, after
        `ImageReader.prepare`, the pixels of the part. Empty: they are too many bytes to wait for
        the graph; `ImageReader.decode_large` gets them when it comes to them.
      header: the image's header.
    """

    example: int
    data: bytes | npt.NDArray[Any]
    header: ImageHeader


class ImageReader:
    """Reads images, from the data set or from memory. Several threads may use it."""

    def __init__(
        self, split: Split, config: DataConfig, worker: Worker, *, promised_bytes: float = 0.0
    ) -> None:
        """Creates a reader with an empty cache.

        Args:
          split: the split that the images are read from.
          config: --cache and --max_bad_examples.
          worker: this worker, which shares the host's memory with local_size - 1 others.
          promised_bytes: what caches of other splits will take of it.

        Raises:
          ConfigError: the host's memory does not suffice for --cache.
        """
        self._split = split
        self._config = config
        self._decoder = Decoder(config.resize)
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        self._cache: dict[int, Image] = {}
        self.cache_bytes = 0.0
        if config.cache != "none":
            self.cache_bytes = self._check_memory(worker, promised_bytes)

    @property
    def bad_examples(self) -> int:
        """The number of different examples that were found to be bad."""
        return len(self._bad)

    def read(self, example: int) -> Image | None:
        """Reads an image; returns None for one that is found to be bad.

        Raises:
          UserError: it is one bad example too many, or the data set is damaged.
        """
        if example in self._cache:
            return self._cache[example]
        try:
            data = self._split.read(example)
            header = self._read_header(data)
            image = Image(example, data, header)
            if self._config.cache == "decoded":
                pixels = self._decoder.decode(data, header)
                image = Image(example, pixels, header._replace(format=RAW))
        except BadImageError as error:
            self._report(example, str(error))
            return None
        if self._config.cache != "none":
            self._cache[example] = image
        return image

    def _read_header(self, data: bytes) -> ImageHeader:
        header = read_header(data)
        if self._config.exif_orientation == "ignore":
            return header._replace(orientation=UPRIGHT)
        return header

    def prepare(
        self, image: Image, find_parts: Callable[[Image], Parts], *, decode: bool
    ) -> Image | None:
        """Decodes the part of an image where Pillow has to, and tries to where that is asked.

        A large part is left for `decode_large`, since a chunk of them takes a gigabyte. A file may
        be cut off below one window and within another. The result of one window is not kept for the
        next, so that the stream is the same from whichever step it starts.

        Args:
          image: the image, as `read` returns it.
          find_parts: the function that finds the part.
          decode: whether to make sure that the graph can decode the part.

        Returns:
          The image, whose data are the part's pixels where Pillow has decoded it. None: it can't be
          decoded, and was counted as bad.

        Raises:
          UserError: it is one bad example too many.
        """
        if isinstance(image.data, np.ndarray):
            is_small = image.data.nbytes <= MOST_BYTES
            if is_small or _count_bytes(find_parts(image)) <= MOST_BYTES:
                return image
            return image._replace(data=b"")
        is_by_pillow = encoded.FORMATS[image.header.format].decode is None
        if not is_by_pillow and not decode:
            return image
        parts = find_parts(image)
        top, left, height, width = parts.windows[0].tolist()
        is_large = is_by_pillow and _count_bytes(parts) > MOST_BYTES
        try:
            if not is_by_pillow:
                decoder = int(parts.decoders[0])
                self._decoder.decode_part(image.data, decoder, (top, left, height, width))
            elif decode or not is_large:
                pixels = self._decoder.decode(image.data, image.header)
                if not is_large:
                    part = pixels[top : top + height, left : left + width].tobytes()
                    return image._replace(data=part, header=image.header._replace(format=RAW))
        except BadImageError as error:
            self._report(image.example, str(error))
            return None
        return image._replace(data=b"") if is_large and len(image.data) > MOST_BYTES else image

    def decode_large(
        self, contents: bytes, decoder: int, window: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Decodes what `prepare` has left for the graph; see `pixels.DecodeFn`."""
        top, left, height, width = window.tolist()
        try:
            if decoder == AGAIN:
                example = int(contents)
                kept = self._cache.get(example)
                data = self._split.read(example) if kept is None else kept.data
            else:
                data = contents
            pixels = by_pillow.decode(data) if isinstance(data, bytes) else data
        except (BadImageError, UserError):  # The chunk is made again, and says what it is.
            return np.zeros([0], np.uint8)
        return pixels[top : top + height, left : left + width]

    def _report(self, example: int, reason: str) -> None:
        """Counts a bad example and logs it once; raises UserError where it is one too many."""
        allowed = self._config.max_bad_examples
        with self._lock:
            is_known = example in self._bad
            self._bad.add(example)
            count = len(self._bad)
        if is_known and count <= allowed:
            return
        fault = f"{self._split.where(example)}: a bad image: {reason}"
        if count > allowed:
            raise UserError(
                f"{fault}. It is number {count} of this worker, where --max_bad_examples allows "
                f"{allowed}. scripts/verify_dataset.py lists all of them."
            )
        if isinstance(self._split, NotesBad):
            self._split.note_bad(example, reason)
            return
        logging.warning("%s. It is left out, as number %d of %d allowed.", fault, count, allowed)

    def _check_memory(self, worker: Worker, promised_bytes: float) -> float:
        """Returns the bytes that all workers of this host will cache of the split.

        Raises:
          ConfigError: the host's memory does not suffice for them.
        """
        count = len(self._split.labels)
        samples = np.linspace(0, count - 1, min(count, _SAMPLES)).astype(int)
        sizes = []
        for example in samples.tolist():
            try:
                data = self._split.read(example)
                header = read_header(data)
            except BadImageError:  # It is counted when the stream reads it.
                continue
            is_encoded = self._config.cache == "encoded"
            sizes.append(len(data) if is_encoded else 3 * header.height * header.width)
        # Each worker caches every example in time, since each epoch is shuffled anew.
        needed = float(np.mean(sizes or [0])) * count * worker.local_size
        available = max(0.0, free_memory.available_bytes() - promised_bytes)
        if needed > available:
            raise ConfigError(
                f"--cache: {self._config.cache} images need about {needed / 2**30:.1f} GiB for "
                f"{worker.local_size} workers on this host, which has {available / 2**30:.1f} GiB "
                f"left, got {self._config.cache!r}",
                status=exit_status.FAILED,
            )
        return needed
