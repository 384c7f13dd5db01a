"""The writer of a run."""

from pathlib import Path

from trainer.errors import UserError
from trainer.telemetry.writers.background import BackgroundWriter
from trainer.telemetry.writers.event_file import EventFileWriter
from trainer.telemetry.writers.json_lines import JsonLinesWriter
from trainer.telemetry.writers.protocol import NullWriter, Writer


def create_writer(logdir: str | None, *, rank: int, first_step: int | None = None) -> Writer:
    """The writer of a run: events and metrics.jsonl in `logdir`, from rank 0 alone.

    Args:
      logdir: the run's folder; None: nothing is kept.
      rank: of this worker.
      first_step: the first step that will be written: what the folder has of it and of later ones
        is from before a restart, and goes. None: nothing goes; this writes beside the run.

    Raises:
      UserError: metrics.jsonl has such lines, and cannot be written anew without them.
    """
    if logdir is None or rank != 0:
        return NullWriter()
    metrics = Path(logdir) / "metrics.jsonl"
    try:
        lines = JsonLinesWriter(metrics, first_step=first_step)
    except OSError as error:
        raise UserError(f"--logdir: {metrics} cannot be written ({error}): make room") from error
    return BackgroundWriter([EventFileWriter(logdir, first_step=first_step), lines])
