"""The writer of a run."""

from pathlib import Path

from trainer import exit_status
from trainer.errors import UserError
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.background import BackgroundWriter
from trainer.telemetry.writers.event_file import EventFileWriter
from trainer.telemetry.writers.json_lines import JsonLinesWriter
from trainer.telemetry.writers.protocol import NullWriter, Writer


def create_writer(logdir: str | None, *, rank: int, first_step: int | None = None) -> Writer:
    """Returns the writer of a run: events and metrics.jsonl in `logdir`, from rank 0 alone.

    Args:
      logdir: folder of the run; None: nothing is written.
      rank: rank of this worker.
      first_step: first step that will be written: what the folder has of it and of later steps is
        from before a restart, and is dropped. None: nothing is dropped, since another process than
        the run's writes.

    Raises:
      UserError: metrics.jsonl has such lines, and can't be written without them.
    """
    if logdir is None or rank != 0:
        return NullWriter()
    metrics = Path(logdir) / metrics_lines.NAME
    try:
        lines = JsonLinesWriter(metrics, first_step=first_step)
    except OSError as error:
        raise UserError(
            f"--logdir: {metrics} cannot be written ({error}): make room",
            status=exit_status.FAILED,
        ) from error
    return BackgroundWriter([EventFileWriter(logdir, first_step=first_step), lines])
