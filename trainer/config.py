"""The configuration: frozen dataclasses, one per group of flags, each of which validates itself.

Every field is one command-line flag of the same name. Its default, its bounds and its help are
stated here and nowhere else: `flags.command_line` defines the flags from these fields. Nothing
here imports TensorFlow, so that a wrong flag is refused before that import is paid for.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from trainer.errors import ConfigError

T = TypeVar("T")


def flag(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> T:
    """A dataclass field that is also a flag.

    Args:
      default: the value without the flag. None: not given; the help says what happens then.
      help: one sentence, with the unit.
      minimum, above: inclusive and exclusive lower bound of a number.
      maximum, below: inclusive and exclusive upper bound of a number.
      choices: the allowed values of a string.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "below": below,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _broken_rule(value: Any, metadata: Any) -> str | None:
    """The rule that `value` breaks, in words, or None."""
    if metadata["choices"] is not None and value not in metadata["choices"]:
        return f"must be one of {', '.join(metadata['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if metadata["minimum"] is not None and value < metadata["minimum"]:
        return f"must be at least {metadata['minimum']}"
    if metadata["above"] is not None and value <= metadata["above"]:
        return f"must be greater than {metadata['above']}"
    if metadata["maximum"] is not None and value > metadata["maximum"]:
        return f"must be at most {metadata['maximum']}"
    if metadata["below"] is not None and value >= metadata["below"]:
        return f"must be less than {metadata['below']}"
    return None


class Checked:
    """Base of the groups below: checks every field against its own rule."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value == "":
                raise ConfigError(f"--{field.name}: must not be empty, got ''")
            rule = None if value is None else _broken_rule(value, field.metadata)
            if rule is not None:
                raise ConfigError(f"--{field.name}: {rule}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """The network and the arguments of its arg scope."""

    model: str = flag(
        "resnet_v2_50",
        "resnet_v2_50, resnet_v2_101, resnet_v2_152, resnet_v2_200, or package.module:function.",
    )
    num_classes: int | None = flag(
        None, "Classes of the network. Default: as many as the data has.", minimum=1
    )
    weight_decay: float = flag(
        1e-4,
        "L2 coefficient on the convolution weights: loss += it * sum(w^2) / 2.",
        minimum=0.0,
    )
    batch_norm_decay: float = flag(
        0.997,
        "Decay of BN's moving statistics, which need some 3 / (1 - it) steps: short runs want 0.9.",
        minimum=0.0,
        below=1.0,
    )
    batch_norm_epsilon: float = flag(1e-5, "Added to BN's variance.", above=0.0)
    precision: str = flag(
        "float32",
        "Type of activations and convolutions. Variables, BN, logits and loss are float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    xla: bool = flag(False, "Compile the graph with XLA. For GPUs: on CPUs it is slower.")


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Where examples come from and how they become a batch."""

    dataset: str | None = flag(
        None,
        "synthetic, tfrecord, folder, or package.module:function. "
        "Default: what --data_dir holds; synthetic without it.",
    )
    data_dir: str | None = flag(None, "Folder of the data set.")
    image_size: int = flag(
        224, "Height and width of the network's input, pixels.", minimum=1, maximum=2**15
    )
    batch_size: int = flag(32, "Examples per step and worker.", minimum=1, maximum=2**31 - 1)
    label_offset: int | None = flag(
        None,
        "Subtracted from the labels of TFRecords: 1 where they start at 1, as in tf-slim's and "
        "TPU's ImageNet. Default: what dataset.json says; without one, 0 if a label is 0.",
        minimum=0,
    )
    validation_fraction: float = flag(
        0.0,
        "Share of every class to hold out where a folder of images has no train/ and validation/.",
        minimum=0.0,
        below=1.0,
    )
    preprocessing: str = flag(
        "inception",
        "inception: pixels scaled to [-1, 1]; imagenet: each channel minus ImageNet's mean, "
        "over its standard deviation.",
        choices=("inception", "imagenet"),
    )
    augment: str = flag(
        "standard",
        "Training images. none: as in evaluation; shift: by up to a sixteenth of the size, for "
        "small centred images; standard: random resized crop and mirror (arXiv:1409.4842); "
        "rand: these and RandAugment (arXiv:1909.13719).",
        choices=("none", "shift", "standard", "rand"),
    )
    crop_min_area: float = flag(
        0.08,
        "Smallest share of an image that a random resized crop takes.",
        above=0.0,
        maximum=1.0,
    )
    flip: bool = flag(True, "Mirror half of the training images; not with --augment=none or shift.")
    color_jitter: float = flag(
        0.0,
        "Brightness, contrast and colour of training images change by up to this share.",
        minimum=0.0,
        maximum=1.0,
    )
    mixup: float = flag(
        0.0,
        "Alpha of mixup: training images and their labels are blended (arXiv:1710.09412); 0: off.",
        minimum=0.0,
    )
    cutmix: float = flag(
        0.0,
        "Alpha of CutMix: boxes of training images are exchanged, with their share of the label "
        "(arXiv:1905.04899); 0: off. With --mixup, each example gets one of the two.",
        minimum=0.0,
    )
    crop_fraction: float = flag(
        0.875,
        "Side of the centre crop in evaluation, as a share of the image's shorter side.",
        above=0.0,
        maximum=1.0,
    )
    shuffle_block: int | None = flag(
        None,
        "Neighbouring examples that the shuffle keeps together, so that a spinning or remote disk "
        "is read in larger pieces. Default: 1 for local files, 16 for remote ones.",
        minimum=1,
    )
    cache: str = flag(
        "none",
        "What a worker keeps in memory once it has been read: none, encoded images, or decoded "
        "ones. Refused where memory does not suffice.",
        choices=("none", "encoded", "decoded"),
    )
    max_bad_examples: int = flag(
        0,
        "Images that a worker may fail to decode before it stops. In training the next good one "
        "takes the place of a bad one; in evaluation it is left out of the count.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "synthetic" and self.data_dir is not None:
            raise ConfigError(
                f"--data_dir: must not be given with --dataset=synthetic, got {self.data_dir!r}"
            )
        if self.dataset in ("tfrecord", "folder") and self.data_dir is None:
            raise ConfigError(f"--data_dir: must be given with --dataset={self.dataset}, got none")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """The update and its step size."""

    optimizer: str = flag(
        "momentum", "Update rule.", choices=("sgd", "momentum", "nesterov", "adam")
    )
    base_learning_rate: float = flag(
        0.1,
        "Peak learning rate for a global batch of 256; scaled linearly with the global batch "
        "(arXiv:1706.02677).",
        minimum=0.0,
    )
    warmup_epochs: float = flag(
        5.0,
        "Epochs of linear warm-up from 0 to the peak learning rate (arXiv:1706.02677).",
        minimum=0.0,
    )
    lr_schedule: str = flag(
        "cosine",
        "After the warm-up: cosine to 0, step (x 0.1 at 1/3, 2/3 and 8/9 of the run), "
        "polynomial (power 2, to 0), or constant.",
        choices=("cosine", "step", "polynomial", "constant"),
    )
    momentum: float = flag(0.9, "Of momentum and nesterov.", minimum=0.0, below=1.0)
    accumulate_steps: int = flag(
        1,
        "Batches per update and worker: their gradients are averaged before the one all-reduce. "
        "Pays where memory is too small for a larger batch, or the network between hosts is slow.",
        minimum=1,
    )
    label_smoothing: float = flag(
        0.0,
        "Share of the target spread over all classes (arXiv:1512.00567).",
        minimum=0.0,
        below=1.0,
    )


@dataclasses.dataclass(frozen=True)
class CommunicationConfig(Checked):
    """How Horovod averages gradients. Its own HOROVOD_... variables, where set, are left alone."""

    gradient_compression: str = flag(
        "none",
        "Type in which gradients travel: none (as they are, float32) or float16. Pays between "
        "hosts on a slow network; within a host, and on CPUs, converting costs more than it saves.",
        choices=("none", "float16"),
    )
    fusion_threshold_mb: int | None = flag(
        None,
        "Gradients are fused into buffers of up to this size, MiB; 0: not at all. Larger pays on "
        "networks with a high latency. Default: Horovod's, 128.",
        minimum=0,
        maximum=1024,
    )
    autotune: bool = flag(
        False,
        "Let Horovod try fusion thresholds and cycle times in the first some hundred steps. Pays "
        "in long runs over many hosts.",
    )


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
    """How long a run is, and what it keeps."""

    epochs: float | None = flag(
        None,
        "Passes over the training data. Default: 90, where --steps is not given.",
        above=0.0,
    )
    steps: int | None = flag(None, "Updates in all, instead of --epochs.", minimum=1)
    logdir: str | None = flag(
        None,
        "Folder of checkpoints, TensorBoard events and status.json. Default: nothing is kept.",
    )
    resume: str = flag(
        "auto",
        "auto: go on from the newest good checkpoint in --logdir, if any; "
        "never: refuse a --logdir that has one; must: refuse one that has none.",
        choices=("auto", "never", "must"),
    )
    init_checkpoint: str | None = flag(
        None,
        "Start from these weights (a tf.train.Saver prefix, slim's for instance), at step 0; "
        "logits of another number of classes are left as initialized. To evaluate, export or "
        "predict: the checkpoint to use instead of --logdir's newest.",
    )
    log_every: int = flag(10, "Steps between two console lines.", minimum=1)
    checkpoint_every: int = flag(
        1000,
        "Steps between two checkpoints; one is always saved at the end. 0: only then.",
        minimum=0,
    )
    keep_checkpoints: int = flag(3, "Newest checkpoints to keep.", minimum=1)
    eval_every_epochs: float = flag(
        1.0,
        "Epochs between two evaluations; one is always done at the end. 0: only then.",
        minimum=0.0,
    )
    seed: int = flag(
        0,
        "Of initial weights, data order and augmentation.",
        minimum=0,
        maximum=2**31 - 1,
    )
    deterministic: bool = flag(False, "Same seed, same result, to the bit. Slower on GPUs.")
    result_json: str | None = flag(
        None,
        "File for configuration, environment and result, written at the end by rank 0.",
    )

    on_nonfinite: str = flag(
        "stop",
        "After a step whose loss or gradient is not finite, which is never applied. stop: save the "
        "state before it and end; skip: count it and go on; rollback: go back to the newest "
        "checkpoint, once.",
        choices=("stop", "skip", "rollback"),
    )
    watchdog_seconds: float = flag(
        600.0,
        "Seconds without a step after which a worker shows its stacks and ends; at least 20 times "
        "the longest step, and 6 times as much in start-up, saves and evaluations. 0: never.",
        minimum=0.0,
    )
    export_dir: str | None = flag(None, "Folder that --mode=export makes.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"--steps: must not be given with --epochs, got {self.steps} and {self.epochs:g}"
            )
        if self.resume == "must" and self.logdir is None:
            raise ConfigError("--logdir: must be given with --resume=must, got none")
        if self.logdir is not None and set(self.logdir) & set("*?[\\"):
            raise ConfigError(
                "--logdir: must have none of * ? [ and \\, which TensorFlow reads as a pattern, "
                f"got {self.logdir!r}"
            )


@dataclasses.dataclass(frozen=True)
class TelemetryConfig(Checked):
    """What a run tells of itself beyond its scalars."""

    histogram_every: int = flag(
        0,
        "Steps between two histograms of all weights and gradients in TensorBoard, with their "
        "norms; these steps take longer. 0: none.",
        minimum=0,
    )
    profile_steps: str | None = flag(
        None,
        "A:B: the first and the last step to profile: TensorFlow's trace and Horovod's timeline, "
        "in --logdir.",
    )
    mllog: str | None = flag(None, "File for MLPerf's log of the run, written anew by rank 0.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile_steps is not None and self.profile_range is None:
            raise ConfigError(
                "--profile_steps: must be A:B with 1 <= A <= B, such as 100:102, got "
                f"{self.profile_steps!r}"
            )

    @property
    def profile_range(self) -> range | None:
        """The steps to profile; None: none."""
        first, colon, last = (self.profile_steps or "").partition(":")
        if not (colon and first.isdecimal() and last.isdecimal()):
            return None
        return range(int(first), int(last) + 1) if 1 <= int(first) <= int(last) else None


PASSES = ("forward", "forward_backward", "train_step", "input", "allreduce")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Checked):
    """What --benchmark times, and for how long."""

    benchmark_passes: str = flag(
        "forward,forward_backward",
        f"What to time, comma-separated: {', '.join(PASSES)}.",
    )
    benchmark_burn_in: int = flag(
        10,
        "Runs before the timed ones, besides the very first, which is told apart.",
        minimum=0,
    )
    benchmark_steps: int = flag(100, "Timed runs of each pass.", minimum=1)
    benchmark_batch_sizes: str | None = flag(
        None,
        "Batch sizes to try, comma-separated, instead of --batch_size; each in its own process.",
    )
    result_csv: str | None = flag(None, "File to append a row per pass and batch size to.")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.passes if name not in PASSES]
        if unknown:
            raise ConfigError(
                f"--benchmark_passes: must be some of {', '.join(PASSES)}, got {unknown[0]!r}"
            )
        for size in self.batch_sizes:
            if size < 1:
                raise ConfigError(f"--benchmark_batch_sizes: must be at least 1, got {size}")

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes to time, in order, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.benchmark_passes.split(",")))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes to try; empty: --batch_size alone."""
        text = self.benchmark_batch_sizes
        if text is None:
            return ()
        try:
            return tuple(dict.fromkeys(int(size) for size in text.split(",")))
        except ValueError:
            raise ConfigError(
                f"--benchmark_batch_sizes: must be whole numbers with commas between, got {text!r}"
            ) from None


MODES = ("train", "evaluate", "benchmark", "export", "predict", "describe", "doctor")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that one run depends on.

    Attributes:
      mode: one of `MODES`.
      files: the images that --mode=predict classifies.
      given: names of the flags that the command line gives, rather than their defaults.
    """

    mode: str = "train"
    files: tuple[str, ...] = ()
    given: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    communication: CommunicationConfig = dataclasses.field(default_factory=CommunicationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    telemetry: TelemetryConfig = dataclasses.field(default_factory=TelemetryConfig)
    benchmark: BenchmarkConfig = dataclasses.field(default_factory=BenchmarkConfig)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"--mode: must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in ("histogram_every", "profile_steps"):
            if getattr(self.telemetry, name) and self.run.logdir is None:
                raise ConfigError(f"--logdir: must be given with --{name}, got none")
