"""The flags of a run: its length, and what it keeps and reports."""

import dataclasses
import os

from trainer.config.statement import Checked, PathKind, flag
from trainer.errors import ConfigError

# A step may take this many times the longest step before it, whatever --watchdog_seconds says.
LONGEST_STEPS = 20
# Start-up, the first step of a graph (which compiles), a save and a batch of an evaluation may
# take this many times the limit of a step: their durations depend on the run too much for a limit
# of their own.
LONG_PHASE = 6


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
    """The length of a run, and what it keeps."""

    epochs: float | None = flag(
        None,
        "Passes over the training data. Default: 90, where --steps is not given; of synthetic "
        "data 100 steps.",
        above=0.0,
        elsewhere=("num_epochs", "train_epochs", "max_epochs"),
    )
    steps: int | None = flag(
        None,
        "Updates in all, instead of --epochs.",
        minimum=1,
        elsewhere=("max_steps", "train_steps", "num_steps", "max_number_of_steps", "num_batches"),
    )
    logdir: str | None = flag(
        None,
        "Folder of checkpoints, TensorBoard events and status.json. Default: nothing is kept.",
        changes_training=False,
        is_of_one_start=True,
        path=PathKind.LOCAL_OF_TENSORFLOW,
        elsewhere=("log_dir", "train_dir", "output_dir", "model_dir", "checkpoint_dir"),
    )
    resume: str = flag(
        "auto",
        "auto: go on from the newest good checkpoint in --logdir, if any; "
        "never: refuse a --logdir that has one; must: refuse one that has none.",
        choices=("auto", "never", "must"),
        changes_training=False,
        is_of_one_start=True,
    )
    new_class_names: bool = flag(
        False,
        "Go on with a run although the names of its classes, or their order, have changed.",
        changes_training=False,
        is_of_one_start=True,
    )
    init_checkpoint: str | None = flag(
        None,
        "Start from these weights, at step 0: the prefix of a checkpoint or one of its files, also "
        "slim's of one file (V1), or a folder, of which the newest good checkpoint is taken; "
        "logits of another number of classes are left as initialized. To evaluate, export or "
        "predict: the checkpoint to use instead of --logdir's newest.",
        is_of_beginning=True,
        path=PathKind.LOCAL_OF_TENSORFLOW,
        elsewhere=("checkpoint_path", "pretrained", "weights"),
    )
    checkpoint: str | None = flag(
        None,
        "Checkpoint to evaluate, export or predict with: latest (the default) or best of "
        "--logdir, or what --init_checkpoint takes.",
        changes_training=False,
        path=PathKind.LOCAL_OF_TENSORFLOW,
        modes=("evaluate", "export", "predict"),
    )
    follow: bool = flag(
        False,
        "Evaluate each checkpoint of --logdir that was not, the oldest first, while a run makes "
        "them, and end with it.",
        changes_training=False,
        modes=("evaluate",),
    )
    log_every: int = flag(
        10,
        "Steps between two console lines.",
        minimum=1,
        changes_training=False,
        elsewhere=("log_every_n_steps", "print_freq", "display_every"),
    )
    checkpoint_every: int = flag(
        1000,
        "Steps between two checkpoints; one is always saved at the end. 0: only then.",
        minimum=0,
        changes_training=False,
        elsewhere=("save_every", "save_interval"),
    )
    checkpoint_every_minutes: float = flag(
        0.0,
        "Minutes after which a checkpoint is saved as well, by rank 0's clock, counted from the "
        "one before. 0: by steps alone.",
        minimum=0.0,
        changes_training=False,
        elsewhere=("save_interval_secs", "save_checkpoints_secs", "save_interval_minutes"),
    )
    keep_checkpoints: int = flag(
        3,
        "Newest checkpoints to keep.",
        minimum=1,
        changes_training=False,
        elsewhere=("max_to_keep",),
    )
    eval_every_epochs: float = flag(
        1.0,
        "Epochs between two evaluations, each after the step that ends them; one is always done at "
        "the end, and none shortly before. 0: only then.",
        minimum=0.0,
        changes_training=False,
    )
    stop_at_top1: float | None = flag(
        None,
        "End the run, as finished, after an evaluation whose top-1 is at least this share.",
        above=0.0,
        maximum=1.0,
        changes_training=False,
        elsewhere=("target_accuracy", "stop_threshold", "target_top1"),
    )
    seed: int = flag(
        0,
        "Of initial weights, data order and augmentation.",
        minimum=0,
        maximum=2**31 - 1,
        is_hparam=True,
        elsewhere=("random_seed",),
    )
    deterministic: bool = flag(
        False,
        "Same seed and same workers, same result, to the bit. Slower on GPUs.",
        is_hparam=True,
    )
    result_json: str | None = flag(
        None,
        "File for configuration, environment and result, written at the end by rank 0.",
        changes_training=False,
        is_of_one_start=True,
        path=PathKind.LOCAL,
        is_written=True,
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
        "Seconds without a step after which a worker shows its stacks and ends; at least "
        f"{LONGEST_STEPS} times the longest step, and {LONG_PHASE} times as much for start-up, a "
        "save and each batch of a run's evaluations. 0: never.",
        minimum=0.0,
        changes_training=False,
    )
    export_dir: str | None = flag(
        None,
        "Folder that --mode=export makes.",
        changes_training=False,
        path=PathKind.LOCAL_OF_TENSORFLOW,
        modes=("export",),
    )
    export_format: str = flag(
        "saved_model",
        "saved_model: TensorFlow's, for encoded images or pixels. tflite: for LiteRT; onnx: for "
        "ONNX Runtime; both for pixels alone, and with packages of setup.py's extra `export`.",
        choices=("saved_model", "tflite", "onnx"),
        changes_training=False,
        modes=("export",),
    )
    export_precision: str = flag(
        "float32",
        "Type of the exported network's convolutions and of their weights; in a tflite of the "
        "stored weights alone. bfloat16 (of a saved_model) and float16: half the size of float32, "
        "and predictions that differ a little.",
        choices=("float32", "bfloat16", "float16"),
        changes_training=False,
        modes=("export",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"--steps: must not be given with --epochs, got {self.steps} and {self.epochs:g}"
            )
        if self.checkpoint is not None and self.init_checkpoint is not None:
            raise ConfigError(
                "--checkpoint: must not be given with --init_checkpoint, got "
                f"{self.checkpoint!r} and {self.init_checkpoint!r}"
            )
        if self.follow and (self.logdir is None or self.chosen_checkpoint is not None):
            raise ConfigError("--follow: must be given with --logdir, and no other checkpoint")
        if self.export_precision == "bfloat16" and self.export_format != "saved_model":
            raise ConfigError(
                f"--export_precision: must be float32 or float16 with --export_format="
                f"{self.export_format}, got 'bfloat16'"
            )
        if self.checkpoint == "best" and self.logdir is None:
            raise ConfigError("--logdir: must be given with --checkpoint=best, got none")
        if self.resume == "must" and self.logdir is None:
            raise ConfigError("--logdir: must be given with --resume=must, got none")
        if self.logdir is not None and set(self.logdir) & set("*?[\\"):
            raise ConfigError(
                "--logdir: must have none of * ? [ and \\, which TensorFlow reads as a pattern, "
                f"got {self.logdir!r}"
            )

    @property
    def chosen_checkpoint(self) -> str | None:
        """Checkpoint to use in place of --logdir's newest: a prefix, file or folder; None: that."""
        if self.checkpoint == "best":
            return os.path.join(self.logdir or "", "best")
        return self.init_checkpoint if self.checkpoint in (None, "latest") else self.checkpoint

    @property
    def uses_own_checkpoint(self) -> bool:
        """Returns whether the checkpoint to use is one that the run in --logdir has made."""
        return self.chosen_checkpoint is None or self.checkpoint == "best"


@dataclasses.dataclass(frozen=True)
class TelemetryConfig(Checked):
    """The reports of a run beyond its scalars."""

    histogram_every: int = flag(
        0,
        "Steps between two histograms of all weights and gradients in TensorBoard, with their "
        "norms; these steps take longer. 0: none.",
        minimum=0,
        changes_training=False,
        needs="logdir",
    )
    profile_steps: str | None = flag(
        None,
        "A:B: the first and the last step to profile: TensorFlow's trace and Horovod's timeline, "
        "in --logdir.",
        changes_training=False,
        needs="logdir",
    )
    mllog: str | None = flag(
        None,
        "File for MLPerf's log of the run, written anew by rank 0.",
        changes_training=False,
        is_of_one_start=True,
        path=PathKind.LOCAL,
        is_written=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile_steps is not None and self.profile_range is None:
            raise ConfigError(
                "--profile_steps: must be A:B with 1 <= A <= B, such as 100:102, got "
                f"{self.profile_steps!r}"
            )

    @property
    def profile_range(self) -> range | None:
        """Steps to profile; None: none."""
        first, colon, last = (self.profile_steps or "").partition(":")
        if not (colon and first.isdecimal() and last.isdecimal()):
            return None
        return range(int(first), int(last) + 1) if 1 <= int(first) <= int(last) else None
