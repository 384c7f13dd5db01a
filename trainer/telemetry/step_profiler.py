"""Traces of some steps (--profile_steps), by TensorFlow's profiler and by Horovod."""

from pathlib import Path
from typing import Protocol

import tensorflow as tf

from trainer.distributed import Group
from trainer.process import files
from trainer.telemetry import trace
from trainer.telemetry.console import Console

# Within the log folder: the traces for Perfetto, and Horovod's.
FOLDER = "profile"


class StepProfiler(Protocol):
    """Profiles some of a run's steps."""

    def is_due(self, step: int) -> bool:
        """Returns whether a trace begins or ends after `step`."""

    def after_step(self, step: int) -> None:
        """Begins the trace before the first of its steps, and ends it after the last."""

    def close(self) -> None:
        """Ends the trace, if it has begun."""


class NullStepProfiler:
    """The profiler of ranks other than 0, and of runs without --profile_steps."""

    def is_due(self, step: int) -> bool:
        del step
        return False

    def after_step(self, step: int) -> None:
        del step

    def close(self) -> None:
        pass


class TraceWriter:
    """Writes the trace of a range of steps, on rank 0.

    TensorFlow's trace goes where TensorBoard's profile plug-in looks for it,
    `<logdir>/plugins/profile/steps_A_to_B/`. `<logdir>/profile/` has the same for Perfetto,
    `steps_A_to_B.trace.json.gz`, and Horovod's timeline, `steps_A_to_B.horovod.json`.
    """

    def __init__(self, logdir: str, steps: range, group: Group, console: Console) -> None:
        """Waits for the first of `steps`."""
        self._logdir = Path(logdir)
        self._steps = steps
        self._group = group
        self._console = console
        self._is_running = False
        self._name = f"steps_{steps[0]}_to_{steps[-1]}"
        self._temporary = files.temporary_path(self._logdir / "profiling")

    def is_due(self, step: int) -> bool:
        return step in (self._steps[0] - 1, self._steps[-1])

    def after_step(self, step: int) -> None:
        if step == self._steps[-1]:
            self.close()
        elif step == self._steps[0] - 1:
            self._start()

    def _start(self) -> None:
        folder = self._logdir / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tf.profiler.experimental.start(str(self._temporary))
        except (OSError, tf.errors.OpError) as error:
            self._console.say(f"no trace of {self._name} ({error}); training goes on")
            return
        self._group.start_timeline(str(folder / f"{self._name}.horovod.json"))
        self._is_running = True

    def close(self) -> None:
        if not self._is_running:
            return
        self._is_running = False
        self._group.stop_timeline()
        try:
            tf.profiler.experimental.stop()
            self._keep()
            self._console.say(f"the trace of {self._name} is in {self._logdir / FOLDER}")
        except (OSError, tf.errors.OpError) as error:
            self._console.say(f"the trace could not be written ({error}); training goes on")
        finally:
            files.remove(self._temporary)

    def _keep(self) -> None:
        """Moves TensorFlow's trace from the temporary folder to its places."""
        folder = self._logdir / "plugins" / "profile" / self._name
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._temporary.glob("plugins/profile/*/*.xplane.pb"):
            trace.write(path, self._logdir / FOLDER / f"{self._name}.trace.json.gz")
            path.replace(folder / path.name)


def create_step_profiler(
    logdir: str | None, steps: range | None, group: Group, console: Console
) -> StepProfiler:
    """Returns the profiler of one worker of a run; without a trace where `steps` is None."""
    if group.worker.rank != 0 or logdir is None or steps is None:
        return NullStepProfiler()
    return TraceWriter(logdir, steps, group, console)
