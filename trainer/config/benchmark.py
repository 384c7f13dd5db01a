"""The flags of --benchmark."""

import dataclasses

from trainer.config.statement import Checked, PathKind, flag
from trainer.errors import ConfigError

PASSES = ("forward", "forward_backward", "train_step", "input", "allreduce")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Checked):
    """The passes that --benchmark times, and the number of their runs."""

    benchmark_passes: str = flag(
        "forward,forward_backward",
        f"What to time, comma-separated: {', '.join(PASSES)}.",
        changes_training=False,
    )
    benchmark_burn_in: int = flag(
        10,
        "Runs before the timed ones, besides the very first, which is told apart.",
        minimum=0,
        changes_training=False,
    )
    benchmark_steps: int = flag(100, "Timed runs of each pass.", minimum=1, changes_training=False)
    benchmark_batch_sizes: str | None = flag(
        None,
        "Batch sizes to try, comma-separated, instead of --batch_size; each in its own process.",
        changes_training=False,
    )
    result_csv: str | None = flag(
        None,
        "File to append a row per pass and batch size to.",
        changes_training=False,
        path=PathKind.LOCAL,
        is_written=True,
        modes=("benchmark",),
    )

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
        """Names of the passes to time, in order, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.benchmark_passes.split(",")))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes to try; empty: --batch_size alone."""
        text = self.benchmark_batch_sizes
        if text is None:
            return ()
        try:
            return tuple(dict.fromkeys(int(size) for size in text.split(",")))
        except ValueError:
            raise ConfigError(
                f"--benchmark_batch_sizes: must be whole numbers with commas between, got {text!r}"
            ) from None
