"""A log that MLPerf's tools read (--mllog), for a ResNet run of the open division.

A line is `:::MLLOG` and a JSON object; https://github.com/mlcommons/logging lists its keys and
has the checker, whose last rules for ResNet are training 4.0.0:

    python -m mlperf_logging.compliance_checker --ruleset 4.0.0 FILE

Values that only a person knows (submission_org, submission_platform) are "unknown", to be replaced.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from trainer.config import Config
from trainer.errors import UserError, status_of
from trainer.plan import Plan
from trainer.telemetry.writers.growing_file import GrowingFile

_START, _END, _POINT = "INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"


class MLPerfLog(Protocol):
    """Logs the events of a run."""

    def begin(self, plan: Plan, *, done: int, train_examples: int, eval_examples: int) -> None:
        """Logs the run's parameters, and that its first step comes next.

        Where the loop begins anew, with images of another size or from an earlier checkpoint, the
        same run goes on: then at most the epoch is another one.

        Args:
          plan: plan of the run.
          done: number of steps done before; all, where the run is complete.
          train_examples, eval_examples: numbers of examples in the data set.
        """

    def after_step(self, step: int) -> None:
        """Logs the end of an epoch, where a step is the last one of an epoch."""

    def evaluating(self, step: int) -> contextlib.AbstractContextManager[list[float]]:
        """Logs an evaluation after a step; its top-1 accuracy is to be added to the list."""

    def end(self) -> None:
        """Logs that the run is complete."""


class NullMLPerfLog:
    """The log of ranks other than 0, and of runs without --mllog."""

    def begin(self, plan: Plan, *, done: int, train_examples: int, eval_examples: int) -> None:
        del plan, done, train_examples, eval_examples

    def after_step(self, step: int) -> None:
        del step

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[list[float]]:
        del step
        yield []

    def end(self) -> None:
        pass


class MLPerfLogFile:
    """Writes a new file, a line at a time, on rank 0; from where the run's first step is next."""

    def __init__(self, path: str, config: Config) -> None:
        """Begins the log: the set-up of the run comes next. An earlier file stays until then.

        Raises:
          UserError: the file can't be written.
        """
        self._config = config
        self._path = Path(path)
        self._file: GrowingFile | None = None
        self._waiting: list[bytes] = []  # Lines of before there is a file.
        self._is_reported = False
        self._epoch: int | None = None  # The latest that has begun.
        self._is_epoch_open = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab"):
                pass
        except OSError as error:
            raise UserError(
                f"--mllog: must be writable, got {path} ({error.strerror})",
                status=status_of(error),
            ) from None
        self._log(_POINT, "cache_clear", True)
        self._log(_START, "init_start")

    def begin(self, plan: Plan, *, done: int, train_examples: int, eval_examples: int) -> None:
        self._plan = plan
        epoch = self._epoch_of(done + 1)
        if self._epoch is not None:
            # It has gone back to a checkpoint, perhaps from the last step of an epoch.
            if self._is_epoch_open and epoch != self._epoch:
                self._stop_epoch(self._epoch)
            if not self._is_epoch_open:
                self._start_epoch(epoch)
            return
        if done >= plan.total_steps:
            return  # The log of a complete run stays as it is.
        with contextlib.suppress(OSError):  # As on a full disk, which `_log` reports.
            self._path.write_bytes(b"")
        self._file = GrowingFile(self._path)
        for line in self._waiting:
            self._file.append(line)
        parameters = {
            **_describe(self._config, plan),
            "train_samples": train_examples,
            "eval_samples": eval_examples,
        }
        for key, value in parameters.items():
            self._log(_POINT, key, value)
        self._log(_END, "init_stop")
        self._log(_START, "run_start")
        self._start_epoch(epoch)

    def after_step(self, step: int) -> None:
        epoch, following = self._epoch_of(step), self._epoch_of(step + 1)
        is_last = step == self._plan.total_steps
        if is_last or following != epoch:
            self._stop_epoch(epoch)
        if not is_last and following != epoch:
            self._start_epoch(following)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._is_epoch_open = epoch, True
        self._log(_START, "epoch_start", epoch_num=epoch)

    def _stop_epoch(self, epoch: int) -> None:
        self._is_epoch_open = False
        self._log(_END, "epoch_stop", epoch_num=epoch)

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[list[float]]:
        epoch = round(self._plan.epoch_at(step), 4)
        self._log(_START, "eval_start", epoch_num=epoch)
        accuracies: list[float] = []
        yield accuracies
        for accuracy in accuracies:
            self._log(_POINT, "eval_accuracy", accuracy, epoch_num=epoch)
        self._log(_END, "eval_stop", epoch_num=epoch)

    def end(self) -> None:
        if self._epoch is not None and self._is_epoch_open:  # --stop_at_top1 ends a run within one.
            self._stop_epoch(self._epoch)
        self._log(_END, "run_stop", status="success")
        if self._file is not None:
            with contextlib.suppress(OSError):  # `_log` has reported it.
                self._file.close()

    def _epoch_of(self, step: int) -> int:
        """Returns the epoch in which a step begins; both count from 1."""
        return math.floor(self._plan.epoch_at(step - 1)) + 1

    def _log(self, kind: str, key: str, value: Any = None, **metadata: Any) -> None:
        line = {
            "namespace": "",
            "time_ms": round(1000 * time.time()),
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": {"file": "trainer/telemetry/mllog.py", "lineno": 0, **metadata},
        }
        encoded = f":::MLLOG {json.dumps(line)}\n".encode()
        if self._file is None:
            self._waiting.append(encoded)
            return
        self._file.append(encoded)
        try:
            self._file.flush()
        except OSError as error:
            if not self._is_reported:
                self._is_reported = True
                with contextlib.suppress(OSError):
                    print(
                        f"slim-horovod: --mllog cannot be written ({error}); training goes on, "
                        "and it is tried again",
                        file=sys.stderr,
                        flush=True,
                    )


def _describe(config: Config, plan: Plan) -> dict[str, Any]:
    """Returns the parameters of a run, by MLPerf's keys."""
    optimizer = config.optimizer
    rule = optimizer.optimizer
    family = "lars" if rule == "lars" else "sgd"
    # Of other rules MLPerf has no key for it; plain SGD has none.
    momenta = {"sgd": 0.0} | dict.fromkeys(("momentum", "nesterov", "lars"), optimizer.momentum)
    workers = plan.global_batch_size // (config.data.batch_size * optimizer.accumulate_steps)
    return {
        "submission_benchmark": "resnet",
        "submission_division": "open",
        "submission_org": "unknown",
        "submission_platform": "unknown",
        "submission_status": "research",
        "global_batch_size": plan.global_batch_size,
        "gradient_accumulation_steps": optimizer.accumulate_steps,
        "seed": config.run.seed,
        "opt_name": "sgd" if optimizer.optimizer == "momentum" else optimizer.optimizer,
        "opt_base_learning_rate": optimizer.base_learning_rate
        * config.rate_batch_size(workers)
        / 256,
        "opt_learning_rate_warmup_epochs": optimizer.warmup_epochs,
        "opt_weight_decay": config.model.weight_decay,
        **({f"{family}_opt_momentum": momenta[rule]} if rule in momenta else {}),
        "model_bn_span": config.data.batch_size * (workers if config.model.sync_batch_norm else 1),
    }


def create_mllog(config: Config, *, rank: int) -> MLPerfLog:
    """Returns the log of one worker of a run, written where --mllog asks for one.

    Raises:
      UserError: the file can't be written.
    """
    if rank != 0 or config.telemetry.mllog is None:
        return NullMLPerfLog()
    return MLPerfLogFile(config.telemetry.mllog, config)
