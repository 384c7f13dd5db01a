"""The configuration: frozen dataclasses, one per group of flags, each of which validates itself.

Every field of a group is the command-line flag of the same name. Its default, its bounds and its
help are stated here and nowhere else: `flags.command_line` defines the flags from these fields.
Nothing here imports TensorFlow, so that a wrong flag is refused before the seconds of that import.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from trainer.config.benchmark import BenchmarkConfig
from trainer.config.data import DataConfig
from trainer.config.fine_tuning import FineTuningConfig
from trainer.config.hosts import HostsConfig
from trainer.config.network import ModelConfig
from trainer.config.prediction import PredictionConfig
from trainer.config.run import RunConfig, TelemetryConfig
from trainer.config.statement import Flag, list_flags
from trainer.config.update import CommunicationConfig, OptimizerConfig
from trainer.errors import ConfigError

__all__ = [
    "MODES",
    "BenchmarkConfig",
    "CommunicationConfig",
    "Config",
    "DataConfig",
    "FineTuningConfig",
    "Flag",
    "HostsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PredictionConfig",
    "RunConfig",
    "TelemetryConfig",
]

# The modes that can find out how large a batch may be.
_FINDS_BATCH_SIZE = ("train", "benchmark", "describe")
MODES = ("train", "evaluate", "benchmark", "export", "predict", "describe", "doctor")


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run.

    Attributes:
      mode: mode of the run, one of `MODES`.
      files: files that --mode=predict classifies: paths of images and folders, lists, or `-`.
      given: names of the flags that the command line gives; others have their defaults.
      automatic: names of the flags that are `auto`: they have their defaults, in whose place
        `modes.run` puts what it finds before anything else sees the configuration.
      model: flags of the network.
      data: flags of the data.
      optimizer: flags of the update.
      fine_tuning: flags of what is taken from other weights, and what is trained.
      communication: flags of the averaging of gradients.
      run: flags of the run's length, and of what it keeps.
      telemetry: flags of what a run reports beyond its scalars.
      benchmark: flags of --benchmark.
      prediction: flags of what a trained network says of single examples.
      hosts: flags of the hosts that --mode=doctor looks at.
    """

    mode: str = "train"
    files: tuple[str, ...] = ()
    given: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    automatic: tuple[str, ...] = ()
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    fine_tuning: FineTuningConfig = dataclasses.field(default_factory=FineTuningConfig)
    communication: CommunicationConfig = dataclasses.field(default_factory=CommunicationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    telemetry: TelemetryConfig = dataclasses.field(default_factory=TelemetryConfig)
    benchmark: BenchmarkConfig = dataclasses.field(default_factory=BenchmarkConfig)
    prediction: PredictionConfig = dataclasses.field(default_factory=PredictionConfig)
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"--mode: must be one of {', '.join(MODES)}, got {self.mode!r}")
        for each in self.flags():
            modes = each.statement.modes
            if modes is not None and self.mode not in modes and each.value != each.default:
                raise ConfigError(
                    f"--{each.name}: must not be given with --mode={self.mode}, which does not use "
                    f"it (it is for {', '.join(modes)}), got {each.value!r}"
                )
        self._check_batches()
        self._check_written_files()
        if self.run.follow and self.prediction.is_wanted:
            raise ConfigError("--follow: must not be given with a file of predictions")
        starts_anew = self.mode == "train" and self.run.init_checkpoint is None
        if self.fine_tuning.init_averages and starts_anew:
            raise ConfigError("--init_checkpoint: must be given with --init_averages, got none")
        values = {each.name: each.value for each in self.flags()}
        for each in self.flags():
            needed = each.statement.needs
            if needed is not None and each.value != each.default and values[needed] is None:
                raise ConfigError(f"--{needed}: must be given with --{each.name}, got none")
        rolls_back = self.mode == "train" and self.run.on_nonfinite == "rollback"
        if rolls_back and self.run.logdir is None:
            raise ConfigError("--logdir: must be given with --on_nonfinite=rollback, got none")

    def _check_batches(self) -> None:
        if self.mode == "benchmark" and self.optimizer.accumulate_steps > 1:
            raise ConfigError(
                "--accumulate_steps: must be 1 with --benchmark, which times single batches, got "
                f"{self.optimizer.accumulate_steps}"
            )
        if self.automatic and self.mode not in _FINDS_BATCH_SIZE:
            raise ConfigError(
                f"--batch_size: must be a number with --mode={self.mode} (auto is for "
                f"{', '.join(_FINDS_BATCH_SIZE)}), got 'auto'"
            )
        if self.automatic and self.benchmark.batch_sizes:
            raise ConfigError(
                "--batch_size: must be a number with --benchmark_batch_sizes, got 'auto'"
            )

    def _check_written_files(self) -> None:
        named: dict[str, str] = {}
        for each in self.flags():
            place = each.value if each.statement.is_written else None
            if place is None or (os.path.exists(place) and not os.path.isfile(place)):
                continue  # What is no file, as /dev/null, may get several.
            with contextlib.suppress(OSError):  # The current folder may be gone.
                place = os.path.realpath(place)
            other = named.setdefault(place, each.name)
            if other != each.name:  # Whose content it would replace, or mix with its own.
                raise ConfigError(
                    f"--{each.name}: must be another file than --{other}, got {each.value!r}"
                )

    def flags(self) -> Iterator[Flag]:
        """Yields every flag but --mode, with its value and what is stated of it."""
        return list_flags(self)

    def rate_batch_size(self, workers: int) -> int:
        """Returns the number of examples with which the learning rate is scaled.

        That of an update; with Adasum, which adds up what is orthogonal, one worker's part of it
        (arXiv:2006.02924, section 4: no rate is scaled with the number of workers).
        """
        of_worker = self.data.batch_size * self.optimizer.accumulate_steps
        is_adasum = self.communication.gradient_reduction == "adasum"
        return of_worker * (1 if is_adasum else workers)
