"""The flags of the data that each kind of data set reads; the others are not left unsaid."""

import dataclasses

import pytest
from input_data import Numbered, write_folder

from trainer.config import Config, DataConfig
from trainer.config.statement import statement_of
from trainer.errors import ConfigError
from trainer.inputs import dataset
from trainer.inputs.conversion import convert
from trainer.inputs.source import Source
from trainer.run import remarks

KINDS = ("synthetic", "folder", "tfrecord", "plug-in")
# Of each flag that has another value than its default: a value that is allowed by itself.
OTHERS = {
    "image_size": 16,
    "batch_size": 2,
    "label_offset": -1,
    "validation_fraction": 0.5,
    "follow_links": True,
    "preprocessing": "imagenet",
    "resize": "bilinear",
    "exif_orientation": "ignore",
    "augment": "shift",
    "crop_min_area": 0.5,
    "flip": False,
    "color_jitter": 0.5,
    "mixup": 0.2,
    "cutmix": 0.2,
    "random_erasing": 0.25,
    "repeated_augmentation": 3,
    "crop_fraction": 0.5,
    "shuffle_block": 2,
    "cache": "encoded",
    "max_bad_examples": 3,
    "eval_image_size": 48,
    "progressive_image_size": "0:16,2:224",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    write_folder(root / "folder", {"a": 4, "b": 4})
    convert.convert(str(root / "folder"), str(root / "tfrecord"), say=lambda _: None)
    return root


def config_of(kind, places, **fields):
    if kind == "synthetic":
        return DataConfig(**fields)
    if kind == "plug-in":
        return DataConfig(dataset="test_inputs_flags:open_numbered", **fields)
    return DataConfig(dataset=kind, data_dir=str(places / kind), **fields)


def open_numbered(config):
    del config
    return Source("numbered", Numbered(4), None, 4, None, "1")


def test_every_flag_of_the_data_is_in_this_matrix():
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    assert fields == {*OTHERS, "dataset", "data_dir"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_each_flag_is_read_or_refused_or_told(places, kind, name):
    config = config_of(kind, places, **{name: OTHERS[name]})
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    read_by = statement_of(field).read_by
    if (kind, name) == ("folder", "shuffle_block"):  # Neighbours are of one class.
        assert "few classes" in dataset.open_dataset(config).remarks[0]
    elif read_by is None or kind in read_by or kind == "plug-in":
        assert dataset.open_dataset(config).remarks == ()
    elif kind == "synthetic":
        told = dataset.open_dataset(config).remarks
        assert told == (f"synthetic data does not read --{name}",)
    else:
        with pytest.raises(ConfigError, match=f"--{name}: must not be given with --dataset={kind}"):
            dataset.open_dataset(config)


def test_labels_of_a_plug_in_are_its_own(places):
    config = config_of("plug-in", places)
    data = dataset.open_dataset(config, num_classes=5, is_network_foreign=True)
    assert "the data set's labels have to begin at 1" in data.remarks[0]
    assert "--label_offset" not in data.remarks[0]


@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_a_network_with_a_background_class_gets_labels_from_one_on(places, kind):
    with pytest.raises(ConfigError, match=r"--label_offset: must be given.* has to be -1, else 0"):
        dataset.open_dataset(config_of(kind, places), num_classes=3, is_network_foreign=True)
    with_background = config_of(kind, places, label_offset=-1)
    data = dataset.open_dataset(with_background, num_classes=3, is_network_foreign=True)
    assert set(data._source.train.labels) == {1, 2}
    assert data.info.class_names == ("background", "a", "b")
    assert data.remarks == ()
    without = config_of(kind, places, label_offset=0)
    data = dataset.open_dataset(without, num_classes=3, is_network_foreign=True)
    assert set(data._source.train.labels) == {0, 1}
    assert "has to be -1" in data.remarks[0]
    # A network of this program has learned its labels from such data.
    assert dataset.open_dataset(config_of(kind, places), num_classes=3).remarks == ()
    with pytest.raises(ConfigError, match="--label_offset: must be 0 for this data, or -1 "):
        dataset.open_dataset(config_of(kind, places, label_offset=1))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"batch_size": 1, "mixup": 0.2, "cutmix": 1.0}, "--mixup and --cutmix: nothing is mixed"),
        ({"batch_size": 1, "cutmix": 1.0}, "--cutmix: nothing is mixed, since partners are of one"),
        ({"batch_size": 2, "cutmix": 1.0}, None),
        ({"batch_size": 1}, None),
    ],
)
def test_images_without_partners_are_told(flags, told):
    lines = remarks.describe_mixing(Config(data=DataConfig(**flags)))
    assert [line[: len(told or "")] for line in lines] == ([told] if told else [])


def test_data_that_teach_nothing_are_told(tmp_path):
    write_folder(tmp_path, {"a": 2})
    config = DataConfig(data_dir=str(tmp_path))
    one, unseen = remarks.describe_data(dataset.open_dataset(config))
    assert one == "there is one class: nothing is learned, since each answer is right"
    assert unseen == "there are no validation examples: nothing is evaluated"
    write_folder(tmp_path, {"b": 2})
    assert remarks.describe_data(dataset.open_dataset(config)) == (unseen,)
    config = dataclasses.replace(config, validation_fraction=0.5)
    assert remarks.describe_data(dataset.open_dataset(config)) == ()
