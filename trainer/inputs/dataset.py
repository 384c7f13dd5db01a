"""Opens a data set and checks that it fits the run, before any graph is built."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from models import plug_in
from trainer.config import DataConfig
from trainer.config.statement import AUTO, statement_of
from trainer.distributed import Worker
from trainer.errors import ConfigError, UserError, status_of
from trainer.inputs import synthetic
from trainer.inputs.class_names import by_name, count_classes, name_classes
from trainer.inputs.images.reader import ImageReader
from trainer.inputs.images.sizes import describe_large
from trainer.inputs.labels import check_labels, count_examples
from trainer.inputs.pipeline import Stream, build_stream
from trainer.inputs.rows import EvaluationRows, TrainRows
from trainer.inputs.source import OpenFn, Source, Split
from trainer.inputs.sources import manifest, storage
from trainer.inputs.sources.folder import open_folder
from trainer.inputs.sources.shards import find_shards, open_tfrecord

# Records that are read together from a remote shard.
_REMOTE_SHUFFLE_BLOCK = 16

BUILT_IN: dict[str, OpenFn] = {"tfrecord": open_tfrecord, "folder": open_folder}


class DatasetInfo(NamedTuple):
    """The facts about its data that a run has to know.

    Attributes:
      name: the name of the kind of data set.
      num_train_examples, num_validation_examples: the number of examples of each split; 0 where
        there is no such split.
      num_classes: the number of classes of the network.
      class_names: the names of the classes, by label. None: not known.
      fingerprint: a text that changes when the data set does.
      counts: the numbers of training and of validation examples of each class, by label. Empty: not
        known.
      exif_orientation: apply or ignore: what of --exif_orientation is done, which for auto the data
        decide. auto: no images are read from files.
    """

    name: str
    num_train_examples: int
    num_validation_examples: int
    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    counts: tuple[tuple[int, int], ...] = ()
    exif_orientation: str = AUTO

    @property
    def names_of_classes(self) -> list[str]:
        """A name for every class of the network: its number, where it has no other."""
        return name_classes(self.class_names, self.num_classes)


class Dataset:
    """Images and labels from files, or from a plug-in.

    Attributes:
      info: the facts about them that a run has to know.
      remarks: lines for the user, such as what is left out.
    """

    def __init__(self, config: DataConfig, source: Source, info: DatasetInfo) -> None:
        self._readers: dict[str, ImageReader] = {}
        self.info = info
        self.remarks = source.remarks
        self._config = config
        self._source = source

    def _split(self, name: str) -> Split:
        """Returns a split by name; raises UserError where there is none, or an empty one."""
        split: Split | None = getattr(self._source, name)
        if split is None or len(split.labels) == 0:
            raise UserError(
                f"--data_dir: {self._config.data_dir or self.info.name} has no {name} examples. "
                "See the kinds of --dataset for where they belong."
            )
        return split

    def at_size(self, image_size: int) -> "Dataset":
        """Returns these data with training images of another size; evaluations keep theirs.

        Both read images by the same readers: what is cached, or was found to be bad, stays so.
        """
        sized = Dataset(_at_size(self._config, image_size), self._source, self.info)
        sized._readers = self._readers
        return sized

    def _reader(self, split: str, worker: Worker) -> ImageReader:
        if split not in self._readers:
            promised = sum(each.cache_bytes for each in self._readers.values())
            self._readers[split] = ImageReader(
                self._split(split), self._config, worker, promised_bytes=promised
            )
        return self._readers[split]

    def describe_sizes(self) -> tuple[str, ...]:
        """Returns a line where training images are much larger than what the network gets."""
        if self.info.name not in BUILT_IN:
            return ()
        is_folder = self.info.name == "folder"
        return describe_large(self._split("train"), self._config, is_folder=is_folder)

    def name_of_validation(self, example: int) -> str:
        """Returns the name of a validation example: its file, and in a shard the record."""
        return self._split("validation").where(example)

    def build_train(self, worker: Worker, *, seed: int) -> Stream:
        """Adds the endless stream of this worker's shuffled, augmented batches to the graph."""
        images = self._reader("train", worker)
        maker = TrainRows(self._config, self._split("train"), worker, seed=seed, images=images)
        return build_stream(maker, self._config, worker, steps=None)

    def build_evaluation(self, worker: Worker) -> Stream:
        """Adds one pass over the validation examples, each of which one worker gets, once.

        Batches are no larger than what there is for each worker: the last one is filled up.
        """
        split = self._split("validation")
        most = math.ceil(len(split.labels) / worker.size)
        config = at_evaluation_size(self._config)
        config = dataclasses.replace(config, batch_size=min(config.batch_size, most))
        maker = EvaluationRows(config, split, worker, self._reader("validation", worker))
        steps = math.ceil(len(split.labels) / (config.batch_size * worker.size))
        return build_stream(maker, config, worker, steps=steps)


class SyntheticDataset:
    """A data set of one random batch, which every step gets, and no validation examples."""

    def __init__(self, config: DataConfig, num_classes: int, remarks: tuple[str, ...] = ()) -> None:
        self.remarks = remarks
        self._config = config
        self.info = DatasetInfo(
            name=synthetic.NAME,
            num_train_examples=synthetic.NUM_EXAMPLES,
            num_validation_examples=0,
            num_classes=num_classes,
            class_names=None,
            fingerprint=synthetic.NAME,
        )

    def at_size(self, image_size: int) -> "SyntheticDataset":
        """Returns such data with images of another size."""
        config = _at_size(self._config, image_size)
        return SyntheticDataset(config, self.info.num_classes, self.remarks)

    def describe_sizes(self) -> tuple[str, ...]:
        """Returns nothing: such a batch is never decoded."""
        return ()

    def build_train(self, worker: Worker, *, seed: int) -> Stream:
        """Adds a stream that repeats one batch to the current graph."""
        return synthetic.build_synthetic(
            self._config, worker, num_classes=self.info.num_classes, seed=seed
        )

    def build_evaluation(self, worker: Worker) -> Stream:
        """Raises UserError: accuracy on random labels means nothing."""
        del worker
        raise UserError("--dataset: synthetic has nothing to evaluate on; give --data_dir")


def at_evaluation_size(config: DataConfig) -> DataConfig:
    """Returns the configuration with which evaluations prepare images, as that of all images."""
    return _at_size(config, config.evaluation_size)


def _at_size(config: DataConfig, image_size: int) -> DataConfig:
    return dataclasses.replace(
        config,
        image_size=image_size,
        eval_image_size=config.evaluation_size,
        progressive_image_size=None,
    )


def _kind(config: DataConfig) -> str:
    """Returns --dataset or, where it is not given, the kind of data set that --data_dir holds."""
    if config.dataset is not None:
        return config.dataset
    if config.data_dir is None:
        return synthetic.NAME
    holds_shards = manifest.is_in(config.data_dir) or find_shards(config.data_dir).splits
    return "tfrecord" if holds_shards else "folder"


def _shuffled_for(config: DataConfig, kind: str) -> tuple[DataConfig, tuple[str, ...]]:
    """Returns the configuration with a --shuffle_block, and a line where it does harm.

    Neighbours in a folder of images are of one class, and no file of it holds two of them.
    """
    if kind == "folder" and (config.shuffle_block or 1) > 1:
        text = f"--shuffle_block={config.shuffle_block}: in a folder of images neighbours are of "
        return config, (f"{text}one class, so that batches have few classes: better give 1",)
    is_remote = config.data_dir is not None and storage.is_remote(config.data_dir)
    if kind == "tfrecord" and is_remote and config.shuffle_block is None:
        return dataclasses.replace(config, shuffle_block=_REMOTE_SHUFFLE_BLOCK), ()
    return config, ()


def _import_plug_in(name: str) -> OpenFn:
    """Imports the function that --dataset names; raises ConfigError where that cannot be done."""
    try:
        return plug_in.load(name)
    except plug_in.PlugInNameError as error:
        raise ConfigError(
            "--dataset: must be synthetic, tfrecord, folder or package.module:function, "
            f"got {name!r}"
        ) from error
    except plug_in.PlugInError as error:
        raise ConfigError(
            f"--dataset: must name a function, got {name!r} ({error.reason})"
        ) from error


def _check_flags(config: DataConfig, kind: str) -> tuple[str, ...]:
    """Returns a line about flags that have a value and that synthetic data does not read.

    Such data takes the place of others in trials, with whatever their flags are.

    Raises:
      ConfigError: another kind does not read such a flag.
    """
    unread = [
        field
        for field in dataclasses.fields(config)
        if (read_by := statement_of(field).read_by) is not None
        and kind in (*BUILT_IN, synthetic.NAME)
        and kind not in read_by
        and getattr(config, field.name) != field.default
    ]
    if unread and kind != synthetic.NAME:
        raise ConfigError(
            f"--{unread[0].name}: must not be given with --dataset={kind}, which does not read it, "
            f"got {getattr(config, unread[0].name)!r}"
        )
    names = ", ".join(f"--{field.name}" for field in unread)
    return (f"synthetic data does not read {names}",) if names else ()


def _check_background(
    config: DataConfig, source: Source, classes: int, num_classes: int | None
) -> Source:
    """Returns the data set for a network of another program, which may have a background class.

    Raises:
      ConfigError: the network has one class more than the data, and no flag says where.
    """
    if num_classes != classes + 1:
        return source
    if _kind(config) not in BUILT_IN:  # The flag says nothing of a plug-in's labels.
        text = (
            f"the network has {num_classes} classes and the data {classes}: where the network's "
            "first class is the background, as in slim's of 1001 classes, the data set's labels "
            "have to begin at 1"
        )
        return source._replace(remarks=(*source.remarks, text))
    text = (
        f"the network has {num_classes} classes and the data {classes}, from label 0 on: where the "
        "network's first class is the background, as in slim's of 1001 classes, --label_offset has "
        f"to be {(config.label_offset or 0) - 1}"
    )
    if config.label_offset is None:
        raise ConfigError(f"--label_offset: must be given, since {text}, else 0")
    return source._replace(remarks=(*source.remarks, text))


AnyDataset = Dataset | SyntheticDataset


def open_dataset(
    config: DataConfig,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    is_network_foreign: bool = False,
) -> AnyDataset:
    """Opens the data set that --dataset and --data_dir name. Adds nothing to a graph.

    Args:
      config: the data group of flags.
      num_classes: the number of classes of the network. None: as many as the data has.
      class_names: the names of a trained network's classes. Where the data's classes have names,
        too, labels are found by name, and the data may have fewer. None: not known.
      is_network_foreign: whether the network may have been trained by another program.

    Raises:
      UserError: the data set is missing or damaged, or has a class that the network lacks.
    """
    try:
        if config.data_dir is not None:
            if not storage.is_folder(config.data_dir):
                raise ConfigError(
                    f"--data_dir: must be a folder that exists, got {config.data_dir!r}"
                )
            # So that `D`, `D/` and `./D` are the same data in the same order.
            config = dataclasses.replace(config, data_dir=storage.normalize(config.data_dir))
        kind = _kind(config)
        remarks = _check_flags(config, kind)
        if kind == synthetic.NAME:
            return SyntheticDataset(config, num_classes or synthetic.DEFAULT_CLASSES, remarks)
        source = BUILT_IN[kind](config) if kind in BUILT_IN else _import_plug_in(kind)(config)
        config, remarks = _shuffled_for(config, kind)
        source = source._replace(remarks=(*source.remarks, *remarks))
    except OSError as error:
        raise UserError(
            f"{error.filename or config.data_dir or config.dataset}: cannot be read "
            f"({error.strerror or error})",
            status=status_of(error),
        ) from error
    if config.exif_orientation == AUTO:
        turns = "apply" if source.turns_upright else "ignore"
        config = dataclasses.replace(config, exif_orientation=turns)
    if class_names is not None:
        check_labels(source, len(source.class_names or class_names))
        source = by_name(source, class_names)
    classes = source.num_classes or count_classes(source)
    if num_classes is not None and num_classes < classes:
        raise ConfigError(
            f"--num_classes: must be at least {classes}, as many as the data has, got {num_classes}"
        )
    if is_network_foreign:
        source = _check_background(config, source, classes, num_classes)
    classes = num_classes or classes
    check_labels(source, classes)
    info = DatasetInfo(
        name=source.name,
        num_train_examples=len(source.train.labels) if source.train else 0,
        num_validation_examples=len(source.validation.labels) if source.validation else 0,
        num_classes=classes,
        class_names=source.class_names,
        fingerprint=source.fingerprint,
        counts=count_examples(source, classes),
        exif_orientation=config.exif_orientation,
    )
    return Dataset(config, source, info)
