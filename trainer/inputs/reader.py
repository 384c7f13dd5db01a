"""Reads the examples of a chunk of the stream: the Python half of the pipeline.

It says which examples they are, reads them, looks at their headers, and decides what is random
about them. Decoding and all other work on pixels is done by C++ ops (`pixels`).
"""

import threading
from typing import NamedTuple

import numpy as np
from absl import logging

from trainer.config import DataConfig, UserError
from trainer.distributed import Worker
from trainer.inputs import augmentation
from trainer.inputs.decoder import Decoder
from trainer.inputs.encoded import RAW, BadImageError, ImageHeader, read_header
from trainer.inputs.order import EpochOrder, global_positions
from trainer.inputs.pixels import Rows
from trainer.inputs.source import Split


class Image(NamedTuple):
    """An example's encoded image."""

    example: int
    data: bytes
    header: ImageHeader


# Fills up the last batches of an evaluation: one black pixel.
_BLANK = Image(0, bytes(3), ImageHeader(RAW, 1, 1))


class ImageReader:
    """Reads images by number and keeps account of those that cannot be decoded."""

    def __init__(self, split: Split, *, max_bad_examples: int) -> None:
        self._split = split
        self._max_bad_examples = max_bad_examples
        self._decoder = Decoder()
        self._lock = threading.Lock()
        self._bad: set[int] = set()

    @property
    def bad_examples(self) -> int:
        """How many different examples were found to be bad."""
        return len(self._bad)

    def read(self, example: int, *, decode: bool) -> Image | None:
        """Reads an image, or returns None for a bad one.

        Args:
          example: its number.
          decode: whether to find out by decoding, and not from its header alone.

        Raises:
          UserError: it is one bad example too many, or the data set is damaged.
        """
        if example in self._bad:
            return None
        try:
            data = self._split.read(example)
            header = read_header(data)
            if decode:
                self._decoder.decode(data, header)
        except BadImageError as error:
            self._report(example, str(error))
            return None
        return Image(example, data, header)

    def _report(self, example: int, reason: str) -> None:
        with self._lock:
            if example in self._bad:
                return
            self._bad.add(example)
            count = len(self._bad)
        fault = f"{self._split.where(example)}: a bad image: {reason}"
        if count > self._max_bad_examples:
            raise UserError(
                f"{fault}. It is number {count} of this worker, where --max_bad_examples allows "
                f"{self._max_bad_examples}. scripts/verify_dataset.py lists all of them."
            )
        logging.warning(
            "%s. It is left out (%d of %d).", fault, count, self._max_bad_examples
        )


class TrainRows:
    """The endless, shuffled and augmented rows of one worker."""

    def __init__(
        self, config: DataConfig, split: Split, worker: Worker, *, seed: int
    ) -> None:
        self.reader = ImageReader(split, max_bad_examples=config.max_bad_examples)
        self._config = config
        self._labels = split.labels
        self._worker = worker
        self._seed = seed
        self._order = EpochOrder(len(split.labels), seed=seed)

    def create(self, local_positions: np.ndarray, *, decode: bool) -> Rows:
        """Rows at some places of this worker's own sequence.

        Args:
          local_positions: int64 [n], counted from this worker's first example.
          decode: whether to make sure that the images can be decoded.

        Raises:
          UserError: too many bad images, or a damaged data set.
        """
        positions = global_positions(
            local_positions,
            rank=self._worker.rank,
            size=self._worker.size,
            batch_size=self._config.batch_size,
        )
        epochs, examples = self._order.examples_at(positions)
        images = [
            self._good_image(int(position), int(example), decode=decode)
            for position, example in zip(positions, examples, strict=True)
        ]
        randoms = augmentation.uniforms(
            self._seed, epochs, examples, augmentation.CROP_RANDOMS + 3
        )
        heights, widths = _sizes(images)
        if self._config.augment == "standard":
            windows = augmentation.random_crops(
                heights, widths, randoms[:, 3:], min_area=self._config.crop_min_area
            )
        else:
            fraction = self._config.crop_fraction
            windows = augmentation.centre_crops(heights, widths, fraction=fraction)
        rows = _create_rows(images, windows, self._labels)
        return rows._replace(flips=randoms[:, 0] < 0.5, shifts=randoms[:, 1:3].astype(np.float32))

    def _good_image(self, position: int, example: int, *, decode: bool) -> Image:
        """The image for a place, or for a bad one the next good one's."""
        for distance in range(len(self._labels)):
            if distance:
                following = np.array([position + distance])
                example = int(self._order.examples_at(following)[1][0])
            image = self.reader.read(example, decode=decode)
            if image is not None:
                return image
        raise UserError("the data set has no good image")


class EvaluationRows:
    """Every example once over all workers, in order; then rows that do not count."""

    def __init__(self, config: DataConfig, split: Split, worker: Worker) -> None:
        self.reader = ImageReader(split, max_bad_examples=config.max_bad_examples)
        self._config = config
        self._labels = split.labels
        self._worker = worker

    def create(self, local_positions: np.ndarray, *, decode: bool) -> Rows:
        """Rows at some places of this worker's own sequence; see `TrainRows.create`."""
        positions = global_positions(
            local_positions,
            rank=self._worker.rank,
            size=self._worker.size,
            batch_size=self._config.batch_size,
        )
        count = len(self._labels)
        images = [
            self.reader.read(int(position), decode=decode) if position < count else None
            for position in positions
        ]
        filled = [image or _BLANK for image in images]
        heights, widths = _sizes(filled)
        fraction = self._config.crop_fraction
        windows = augmentation.centre_crops(heights, widths, fraction=fraction)
        weights = np.array([image is not None for image in images], np.float32)
        return _create_rows(filled, windows, self._labels)._replace(weights=weights)


class GuardedRows:
    """Makes rows for the graph: an error becomes a row that ends the stream, and is kept.

    An exception that went through TensorFlow would come out as a page of traceback.
    """

    def __init__(self, maker: "TrainRows | EvaluationRows") -> None:
        self.maker = maker
        self.error: UserError | None = None

    def create(self, start: np.ndarray, count: int, *, decode: bool) -> Rows:
        """Rows from place `start` (int64, scalar) of this worker's sequence on."""
        try:
            return self.maker.create(start + np.arange(count), decode=decode)
        except UserError as error:
            self.error = self.error or error
        blanks = [_BLANK] * count
        windows = np.tile(np.array([0, 0, 1, 1], np.int32), (count, 1))
        rows = _create_rows(blanks, windows, np.zeros(1, np.int64))
        return rows._replace(weights=np.full(count, -1, np.float32))


def _sizes(images: list[Image]) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths, int64 [n], pixels."""
    sizes = np.array([(image.header.height, image.header.width) for image in images])
    return sizes[:, 0], sizes[:, 1]


def _create_rows(images: list[Image], windows: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows without augmentation, of weight 1."""
    contents = np.empty(len(images), object)
    contents[:] = [image.data for image in images]
    return Rows(
        contents=contents,
        decoders=np.array([image.header.decoder for image in images], np.int32),
        windows=windows,
        labels=labels[[image.example for image in images]].astype(np.int32),
        weights=np.ones(len(images), np.float32),
        flips=np.zeros(len(images), bool),
        shifts=np.full((len(images), 2), 0.5, np.float32),
    )
