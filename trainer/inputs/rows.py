"""Rows of a chunk of the stream: the Python half of the pipeline.

It chooses the examples, reads them, and draws the random numbers of their augmentation. Decoding
and all other work on pixels is done by C++ operations (`images.pixels`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.distributed import Worker
from trainer.errors import UserError
from trainer.inputs.images import augmentation, orientation
from trainer.inputs.images.encoded import AGAIN, RAW, ImageHeader
from trainer.inputs.images.pixels import FLIP, NUM_RANDOMS, Rows, count_randoms
from trainer.inputs.images.reader import Image, ImageReader
from trainer.inputs.images.reduction import Parts, find_parts
from trainer.inputs.order import EpochOrder, dealt_positions, global_positions
from trainer.inputs.source import Split, name_of

# One black pixel, to fill up the last batches of an evaluation.
_BLANK = Image(0, np.zeros((1, 1, 3), np.uint8), ImageHeader(RAW, 1, 1))

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


class TrainRows:
    """The endless, shuffled and augmented rows of one worker."""

    def __init__(
        self,
        config: DataConfig,
        split: Split,
        worker: Worker,
        *,
        seed: int,
        images: ImageReader | None = None,
    ) -> None:
        """Creates the maker of rows.

        Args:
          config: the size, augmentation and batch size.
          split: the examples.
          worker: the worker that reads them.
          seed: the seed of the run.
          images: the reader of the split's images. None: one of its own.
        """
        self.images = images or ImageReader(split, config, worker)
        self.config = config
        self._labels = split.labels
        self._worker = worker
        self._seed = seed
        self._order = EpochOrder(
            len(split.labels),
            seed=seed,
            block=config.shuffle_block or 1,
            repeats=config.repeated_augmentation,
        )

    def create(self, local_positions: npt.NDArray[Any], *, decode: bool) -> Rows:
        """Makes the rows at some positions of this worker's own sequence.

        Args:
          local_positions: positions, counted from this worker's first example: int64 [n].
          decode: whether to make sure that the images can be decoded.

        Raises:
          UserError: too many bad images, or a damaged data set.
        """
        config = self.config
        if config.repeated_augmentation > 1:
            positions = dealt_positions(local_positions, self._worker)
        else:
            positions = global_positions(local_positions, self._worker, config.batch_size)
        times, examples = self._order.examples_at(positions)
        counts = (NUM_RANDOMS, augmentation.CROP_RANDOMS, augmentation.MIXTURE_RANDOMS)
        # What not every run draws comes last, so that all else is the same without it.
        others = count_randoms(config) - NUM_RANDOMS
        randoms = augmentation.uniforms(self._seed, times, examples, sum(counts) + others)
        for_pixels, for_crops, for_mixtures, rest = np.split(randoms, np.cumsum(counts), axis=1)
        images = [
            self._good_image(position, example, for_crops[row, None], decode=decode)
            for row, (position, example) in enumerate(
                zip(positions.tolist(), examples.tolist(), strict=True)
            )
        ]
        shares, boxes = augmentation.mixtures(
            for_mixtures, mixup=config.mixup, cutmix=config.cutmix, size=config.image_size
        )
        rows = _create_rows(images, self._parts(images, for_crops), self._labels, config)
        for_pixels = np.concatenate([for_pixels, rest], axis=1).astype(np.float32)
        # A float64 just below 1 rounds to 1, where what is chosen by it would be out of range.
        for_pixels = np.minimum(for_pixels, _BELOW_ONE)
        if config.augment in ("standard", "rand") and config.flip:
            mirrored = (for_pixels[:, FLIP] < 0.5) * np.int32(orientation.MIRRORED)
            rows = rows._replace(turns=rows.turns ^ mirrored)
        return rows._replace(randoms=for_pixels, shares=shares, boxes=boxes)

    def _parts(self, images: Sequence[Image], randoms: npt.NDArray[Any]) -> Parts:
        config = self.config
        if config.augment in ("none", "shift"):
            return _centre_parts(images, config)
        windows = augmentation.random_crops(
            *_upright_sizes(images), randoms, min_area=config.crop_min_area
        )
        return find_parts([image.header for image in images], windows, config)

    def _good_image(
        self, position: int, example: int, crop_randoms: npt.NDArray[Any], *, decode: bool
    ) -> Image:
        """Returns the image at a position or, where it is bad, the next good one."""
        for attempt in range(len(self._labels)):
            if attempt:
                position = self._order.next_position(position)
                example = int(self._order.examples_at(np.array([position]))[1][0])
            image = self.images.read(example)
            if image is None:
                continue
            prepared = self.images.prepare(
                image, lambda image: self._parts([image], crop_randoms), decode=decode
            )
            if prepared is not None:
                return prepared
        raise UserError(f"{self.config.data_dir}: not one image of the data set can be read")


class EvaluationRows:
    """The rows of one worker in an evaluation, which counts each example once over all workers.

    The examples are in order; rows of weight 0 fill up the last batches.
    """

    def __init__(
        self, config: DataConfig, split: Split, worker: Worker, images: ImageReader | None = None
    ) -> None:
        """Creates the maker of rows; see `TrainRows`."""
        self.images = images or ImageReader(split, config, worker)
        self.config = config
        self._split = split
        self._labels = split.labels
        self._worker = worker

    def name_of(self, step: int, row: int) -> str:
        """Returns the name of the example in a row of a step's batch, which must be one."""
        batch_size = self.config.batch_size
        local = np.array([step * batch_size + row])
        return name_of(self._split, int(global_positions(local, self._worker, batch_size)[0]))

    def create(self, local_positions: npt.NDArray[Any], *, decode: bool) -> Rows:
        """Makes the rows at some positions of this worker's sequence; see `TrainRows.create`."""
        positions = global_positions(local_positions, self._worker, self.config.batch_size)
        images = [self._good_image(position, decode=decode) for position in positions.tolist()]
        # A bad image keeps its label.
        examples = np.where(positions < len(self._labels), positions, 0).tolist()
        filled = [
            image or _BLANK._replace(example=example)
            for image, example in zip(images, examples, strict=True)
        ]
        rows = _create_rows(filled, _centre_parts(filled, self.config), self._labels, self.config)
        return rows._replace(weights=np.array([image is not None for image in images], np.float32))

    def _good_image(self, position: int, *, decode: bool) -> Image | None:
        """Returns the image at a position, or None where there is none or a bad one."""
        image = self.images.read(position) if position < len(self._labels) else None
        if image is None:
            return None
        return self.images.prepare(
            image, lambda image: _centre_parts([image], self.config), decode=decode
        )


class GuardedRows:
    """A maker of rows for the graph that keeps an error and makes rows which end the stream.

    TensorFlow would turn an exception that passes through it into a page of traceback.

    Attributes:
      maker: the maker of the rows.
      error: the first error; None: none so far.
    """

    def __init__(self, maker: TrainRows | EvaluationRows) -> None:
        self.maker = maker
        self.error: UserError | None = None

    def create(self, start: npt.NDArray[Any], count: int, *, decode: bool) -> Rows:
        """Makes `count` rows of this worker's sequence from position `start` (int64, scalar) on."""
        try:
            return self.maker.create(start + np.arange(count), decode=decode)
        except UserError as error:
            self.error = self.error or error
        blanks = [_BLANK] * count
        windows = np.tile(np.array([0, 0, 1, 1], np.int32), (count, 1))
        config = self.maker.config
        parts = find_parts([blank.header for blank in blanks], windows, config)
        rows = _create_rows(blanks, parts, np.zeros(1, np.int64), config)
        return rows._replace(weights=np.full(count, -1, np.float32))


def _upright_sizes(images: Sequence[Image]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the heights and widths of upright images: int64 [n] each, pixels."""
    _, heights, widths, orientations = np.array([image.header for image in images]).T
    return orientation.upright_sizes(heights, widths, orientations)


def _centre_parts(images: Sequence[Image], config: DataConfig) -> Parts:
    windows = augmentation.centre_crops(*_upright_sizes(images), fraction=config.crop_fraction)
    return find_parts([image.header for image in images], windows, config)


def _contents(image: Image, window: Sequence[int]) -> bytes:
    """Returns the decoder's input: an encoded image, or of a decoded one the part's pixels."""
    if isinstance(image.data, bytes):
        return image.data or str(image.example).encode()
    top, left, height, width = window
    return image.data[top : top + height, left : left + width].tobytes()


def _create_rows(
    images: Sequence[Image], parts: Parts, labels: npt.NDArray[Any], config: DataConfig
) -> Rows:
    """Makes rows of weight 1 without augmentation; `labels` are those of the whole split."""
    contents = np.empty(len(images), object)
    contents[:] = [
        _contents(image, window)
        for image, window in zip(images, parts.windows.tolist(), strict=True)
    ]
    is_later = np.array([len(image.data) == 0 for image in images])
    return Rows(
        contents=contents,
        decoders=np.where(is_later, np.int32(AGAIN), parts.decoders),
        windows=parts.windows,
        crops=parts.crops,
        filters=parts.filters,
        turns=parts.turns,
        randoms=np.zeros((len(images), count_randoms(config)), np.float32),
        labels=labels[[image.example for image in images]].astype(np.int32),
        weights=np.ones(len(images), np.float32),
        shares=np.ones(len(images), np.float32),
        boxes=np.zeros((len(images), 4), np.int32),
    )
