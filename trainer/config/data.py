"""The flags of the data."""

import dataclasses

from trainer.config.statement import Checked, PathKind, flag, parse_by_epoch
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """The source of examples, and the way in which they become a batch."""

    dataset: str | None = flag(
        None,
        "synthetic, tfrecord, folder, or package.module:function. "
        "Default: what --data_dir holds; synthetic without it.",
        chooses_data=True,
    )
    data_dir: str | None = flag(
        None,
        "Folder of the data set.",
        changes_training=False,
        chooses_data=True,
        path=PathKind.LOCAL_OR_REMOTE,
        elsewhere=("data", "data_path", "dataset_dir"),
    )
    image_size: int = flag(
        224,
        "Height and width of the network's input, pixels.",
        minimum=1,
        maximum=2**15,
        is_hparam=True,
        belongs_to_model=True,
        elsewhere=("img_size", "train_image_size", "resolution"),
    )
    eval_image_size: int | None = flag(
        None,
        "Likewise in evaluations, predictions and exported models. Default: --image_size.",
        minimum=1,
        maximum=2**15,
        changes_training=False,
        belongs_to_model=True,
        read_by=("tfrecord", "folder"),
        elsewhere=("val_image_size", "test_image_size"),
    )
    progressive_image_size: str | None = flag(
        None,
        "EPOCH:SIZE,...: from each epoch on, training images have this height and width; the first "
        "epoch is 0, the last size --image_size, such as 0:128,30:176,60:224. Early epochs cost "
        "less (arXiv:2104.00298). Evaluations have --eval_image_size.",
        is_hparam=True,
        elsewhere=("image_size_schedule", "progressive_resizing", "resize_schedule"),
    )
    batch_size: int = flag(
        32,
        "Examples per step and worker. auto: as many as fit in memory, found by trial, in training "
        "in one process, with --benchmark and --mode=describe.",
        minimum=1,
        maximum=2**31 - 1,
        is_hparam=True,
        may_be_auto=True,
        elsewhere=("batch", "bs", "train_batch_size"),
    )
    label_offset: int | None = flag(
        None,
        "Subtracted from the labels: 1 where those of TFRecords start at 1, as in tf-slim's and "
        "TPU's ImageNet; -1 where the network has a class for the background before those of the "
        "data, as slim's of 1001 classes. Default: what dataset.json says; without one, 0 if a "
        "label is 0.",
        minimum=-1,
        chooses_data=True,
        read_by=("tfrecord", "folder"),
    )
    validation_fraction: float = flag(
        0.0,
        "Share of every class to hold out where a folder of images has no train/ and validation/. "
        "1: all of it is validation data, for --mode=evaluate.",
        minimum=0.0,
        maximum=1.0,
        chooses_data=True,
        read_by=("folder",),
        elsewhere=("val_split", "validation_split"),
    )
    follow_links: bool = flag(
        False,
        "Read links that lead out of a folder of images, too; else they are refused.",
        changes_training=False,
        chooses_data=True,
        read_by=("folder",),
    )
    resize: str = flag(
        "antialias",
        "How images become smaller. antialias: each pixel is a mean of those that it stands for, "
        "nearly as in Pillow; large JPEGs are decoded at a half, a quarter or an eighth; bilinear: "
        "between four neighbours, as in slim, whose published accuracies were measured so.",
        choices=("antialias", "bilinear"),
        is_hparam=True,
        belongs_to_model=True,
        before="bilinear",
        read_by=("tfrecord", "folder"),
    )
    exif_orientation: str = flag(
        "auto",
        "Images that are stored turned or mirrored. apply: they are turned upright, as their EXIF "
        "orientation says; ignore: taken as stored, but for TIFFs; auto: applied but for TFRecords "
        "without dataset.json. A run keeps what that came to.",
        choices=("auto", "apply", "ignore"),
        belongs_to_model=True,
        before="ignore",
        read_by=("tfrecord", "folder"),
    )
    preprocessing: str = flag(
        "inception",
        "inception: pixels scaled to [-1, 1]; imagenet: each channel minus ImageNet's mean, "
        "over its standard deviation.",
        choices=("inception", "imagenet"),
        is_hparam=True,
        belongs_to_model=True,
        belongs_to_weights=True,
    )
    augment: str = flag(
        "standard",
        "Training images. none: as in evaluation; shift: by up to a sixteenth of the size, for "
        "small centred images; standard: random resized crop and mirror (arXiv:1409.4842); "
        "rand: these and RandAugment (arXiv:1909.13719).",
        choices=("none", "shift", "standard", "rand"),
        is_hparam=True,
        read_by=("tfrecord", "folder"),
    )
    crop_min_area: float = flag(
        0.08,
        "Smallest share of an image that a random resized crop takes.",
        above=0.0,
        maximum=1.0,
        read_by=("tfrecord", "folder"),
    )
    flip: bool = flag(
        True,
        "Mirror half of the training images; not with --augment=none or shift.",
        read_by=("tfrecord", "folder"),
    )
    color_jitter: float = flag(
        0.0,
        "Brightness, contrast and colour of training images change by up to this share.",
        minimum=0.0,
        maximum=1.0,
        is_hparam=True,
        read_by=("tfrecord", "folder"),
    )
    mixup: float = flag(
        0.0,
        "Alpha of mixup: training images and their labels are blended (arXiv:1710.09412); 0: off.",
        minimum=0.0,
        is_hparam=True,
        read_by=("tfrecord", "folder"),
    )
    cutmix: float = flag(
        0.0,
        "Alpha of CutMix: boxes of training images are exchanged, with their share of the label "
        "(arXiv:1905.04899); 0: off. With --mixup, each example gets one of the two.",
        minimum=0.0,
        is_hparam=True,
        read_by=("tfrecord", "folder"),
    )
    random_erasing: float = flag(
        0.0,
        "Probability with which a rectangle of a training image becomes noise: 2 % to a third of "
        "the area, sides of up to 1 : 3.3 (arXiv:1708.04896); before --mixup and --cutmix.",
        minimum=0.0,
        maximum=1.0,
        is_hparam=True,
        read_by=("tfrecord", "folder"),
        elsewhere=("reprob", "random_erase"),
    )
    repeated_augmentation: int = flag(
        1,
        "M: each training example comes M times on end, augmented anew each time and dealt out "
        "over the workers (arXiv:1901.09335). An epoch keeps its number of images, as in timm, so "
        "that it has 1/M of the examples; the next ones have the others.",
        minimum=1,
        maximum=2**31 - 1,
        is_hparam=True,
        read_by=("tfrecord", "folder"),
        elsewhere=("aug_repeats", "ra_reps", "repeated_aug"),
    )
    crop_fraction: float = flag(
        0.875,
        "Side of the centre crop in evaluation, as a share of the image's shorter side.",
        above=0.0,
        maximum=1.0,
        belongs_to_model=True,
        read_by=("tfrecord", "folder"),
    )
    shuffle_block: int | None = flag(
        None,
        "Neighbouring examples that the shuffle keeps together, so that a spinning or remote disk "
        "is read in larger pieces. Default: 16 for remote shards, else 1.",
        minimum=1,
        read_by=("tfrecord", "folder"),
    )
    cache: str = flag(
        "none",
        "What a worker keeps in memory once it has been read: none, encoded images, or decoded "
        "ones. Refused where memory does not suffice.",
        choices=("none", "encoded", "decoded"),
        changes_training=False,
        read_by=("tfrecord", "folder"),
    )
    max_bad_examples: int = flag(
        0,
        "Images that a worker may fail to decode before it stops. In training the next good one "
        "takes the place of a bad one; in evaluation it is left out of the count.",
        minimum=0,
        chooses_data=True,
        read_by=("tfrecord", "folder"),
    )

    @property
    def evaluation_size(self) -> int:
        """Height and width of the network's input in evaluations, pixels."""
        return self.image_size if self.eval_image_size is None else self.eval_image_size

    @property
    def sizes_by_epoch(self) -> tuple[tuple[float, int], ...]:
        """Pairs of --progressive_image_size: epoch, size in training from it on, pixels."""
        pairs = parse_by_epoch(self.progressive_image_size)
        return tuple((epoch, int(size)) for epoch, size in pairs) or ((0.0, self.image_size),)

    @property
    def is_augmented(self) -> bool:
        """Returns whether a training image differs from one time that it comes to the next."""
        return self.augment != "none" or any(
            (self.color_jitter, self.mixup, self.cutmix, self.random_erasing)
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "synthetic" and self.data_dir is not None:
            raise ConfigError(
                f"--data_dir: must not be given with --dataset=synthetic, got {self.data_dir!r}"
            )
        if self.progressive_image_size is not None:
            pairs = parse_by_epoch(self.progressive_image_size)
            are_sizes = all(size.is_integer() and 1 <= size <= 2**15 for _, size in pairs)
            if not pairs or not are_sizes or pairs[0][0] != 0 or pairs[-1][1] != self.image_size:
                raise ConfigError(
                    "--progressive_image_size: must be EPOCH:SIZE,... with rising epochs from 0 on "
                    f"and whole sizes, the last one {self.image_size} (--image_size), such as "
                    f"0:128,30:{self.image_size}, got {self.progressive_image_size!r}"
                )
        if self.dataset in ("tfrecord", "folder") and self.data_dir is None:
            raise ConfigError(f"--data_dir: must be given with --dataset={self.dataset}, got none")
        default = type(self).__dataclass_fields__["crop_min_area"].default
        if self.augment in ("none", "shift") and self.crop_min_area != default:
            raise ConfigError(
                "--crop_min_area: must be given with --augment=standard or rand, got "
                f"{self.crop_min_area}"
            )
        if self.repeated_augmentation > 1 and not self.is_augmented:
            raise ConfigError(
                "--repeated_augmentation: must be 1 with --augment=none, unless images change by "
                "another flag, since an example would come so often unchanged, "
                f"got {self.repeated_augmentation}"
            )
