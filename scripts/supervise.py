#!/usr/bin/env python3
"""Runs a training command, and starts it again after a failure.

  scripts/supervise.py [--max_restarts N] -- horovodrun -np 8 python -m trainer --logdir=DIR ...

The command may be any launcher's: it is run as it is. After a failure it is run again, and goes on
from its newest good checkpoint; the pause before that doubles with each failure, until there is
progress. What another start would meet again ends it at once: a mistake (status 2), unless earlier
starts have saved progress, and a batch that does not fit in memory. A signal asks the run to stop
and save (worker 0 is asked; a second signal goes to the launcher); such a run is not started again.
What happened is told in DIR/supervise.log, and how it ended in DIR/status.json.
"""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from shared import process_tree, program
from shared.launch import Launch

from flags import command_line, flag_files
from trainer import exit_status
from trainer.checkpoints import manifest
from trainer.errors import UserError
from trainer.process import streams
from trainer.safety import lock_holder, status

# Ends of a launcher, or of ssh to a host, that nobody has asked for. Workers that are left save
# then, and call it a preemption.
_CRASHES = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
_LOST_BY_SSH = 255
_CRASH_CODES = (_LOST_BY_SSH, *(128 + signal.Signals[name] for name in _CRASHES))
# A worker that has lost its launcher ends by itself within 15 s.
_LEFT_BEHIND_SEC = 16.0
_LONGEST_PAUSE_SEC = 300.0


class Log:
    """Lines about what happens, on the standard error and in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tell(self, text: str) -> None:
        """Adds a line with the time."""
        now = datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds")
        line = f"{now} {text}"
        print(f"supervise: {line}", file=sys.stderr, flush=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as error:
            print(f"supervise: {self._path} cannot be written ({error})", file=sys.stderr)


@dataclasses.dataclass
class Failures:
    """Counts failures in a row without progress.

    Attributes:
      max_restarts: failures in a row after which the supervisor gives up.
      first_pause_sec: pause before the first restart; it doubles with each failure in a row.
      in_a_row: failures since the last progress.
      furthest: examples of the newest checkpoint up to now.
    """

    max_restarts: int
    first_pause_sec: float
    in_a_row: int = 0
    furthest: int = -1

    def add(self, examples: int) -> float | None:
        """Counts a failure.

        Args:
          examples: those that the newest checkpoint was trained on.

        Returns:
          seconds to wait before the next start; None: give up.
        """
        self.in_a_row = 1 if examples > self.furthest else self.in_a_row + 1
        self.furthest = max(self.furthest, examples)
        if self.in_a_row > self.max_restarts:
            return None
        return min(_LONGEST_PAUSE_SEC, self.first_pause_sec * 2 ** (self.in_a_row - 1))


def _clear_up(log: Log) -> None:
    """Waits for processes that the launcher has left behind on this host; kills those that stay."""
    end_sec = time.monotonic() + _LEFT_BEHIND_SEC
    while (left := process_tree.below(os.getpid())) and time.monotonic() < end_sec:
        time.sleep(0.2)
    if left:
        log.tell(f"killed what the launcher left behind: processes {left}")
        process_tree.end_below(os.getpid())
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _examples(logdir: Path) -> int:
    """The number of examples that the newest checkpoint was trained on; -1: there is none."""
    entries = manifest.read(logdir).entries
    return max((entry.examples for entry in entries), default=-1)


def _status_time(logdir: Path) -> int:
    """The time at which status.json was written, ns; 0: never."""
    try:
        return (logdir / status.FILE_NAME).stat().st_mtime_ns
    except OSError:
        return 0


def supervise(launch: Launch, failures: Failures, logdir: Path, log: Log) -> int:
    """Runs the command until it is done, stopped or given up; returns the exit status."""
    _wait_for_folder(launch, logdir)
    start, first_examples = 0, _examples(logdir)
    while (asked := launch.asked()) is None:
        start += 1
        log.tell(f"start {start}")
        before = _status_time(logdir)
        code = launch.run()
        _clear_up(log)
        is_told = _status_time(logdir) != before
        told = status.read(logdir) if is_told else status.Content()
        state, reason = told.state, told.reason
        if code == 0 and state in (None, "finished"):
            log.tell("finished")
            return 0
        if launch.asked() is not None:
            continue
        if state == "preempted" and code not in _CRASH_CODES:
            log.tell(f"preempted: {reason}")
            return exit_status.PREEMPTED
        if code == exit_status.OUT_OF_MEMORY:
            log.tell(f"out of memory, as another start would be: {reason}")
            return code
        what = f"start {start} ended with status {code}"
        what += f" ({reason})" if state == "failed" else ""
        pause_sec = failures.add(_examples(logdir))
        if code == exit_status.MISTAKE and failures.furthest <= first_examples:
            what = f"{what}: a mistake, which another start would meet again"
            _end_as_failed(logdir, log, what, spares_finished=True)
            return code
        if pause_sec is None:
            reason = f"given up after {failures.in_a_row} failures without progress: {what}"
            _end_as_failed(logdir, log, reason)
            return exit_status.FAILED
        log.tell(f"{what}; failure {failures.in_a_row} without progress; again in {pause_sec:g} s")
        launch.wait(pause_sec)
    log.tell(f"stopped by {asked.name}; status.json says {status.read(logdir)._asdict()}")
    return exit_status.PREEMPTED


def _wait_for_folder(launch: Launch, logdir: Path) -> None:
    """Waits for the end of an earlier run in the folder; refuses to disturb one that goes on."""
    end_sec = time.monotonic() + _LEFT_BEHIND_SEC
    while launch.asked() is None and (holder := lock_holder.find_alive(logdir)) is not None:
        if time.monotonic() > end_sec:
            _fail(f"{holder} trains in {logdir}: wait for its end, or choose another --logdir")
        launch.wait(0.2)


def _end_as_failed(logdir: Path, log: Log, reason: str, *, spares_finished: bool = False) -> None:
    """Tells why there is no further start, in status.json, too."""
    log.tell(reason)
    if lock_holder.find_alive(logdir) is not None:
        return  # The status is of another run, which has the folder.
    if spares_finished and status.read(logdir).state == "finished":
        return  # A start that was refused has changed nothing.
    status.Status(str(logdir), rank=0, has_begun=True).set("failed", reason=reason)


def find_logdir(command: Sequence[str]) -> str | None:
    """The value of --logdir in a command line or in the flag files that it names: the last one.

    Raises:
      UserError: a flag file can't be read.
    """
    found = None
    words = flag_files.expand([word for word in command if word != "--"])  # Of srun, perhaps.
    for position, word in enumerate(words):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "logdir":
            found = (value if equals else "".join(words[position + 1 : position + 2])) or found
    return found


def check_flags(command: Sequence[str]) -> None:
    """Checks the trainer's flags: no restart mends a mistake in them.

    Raises:
      UserError: there is one.
    """
    for position, words in enumerate(itertools.pairwise(command), start=2):
        if words == ("-m", "trainer"):
            asked = (command_line.HelpRequested, command_line.VersionRequested)
            with contextlib.suppress(*asked):
                command_line.parse(["trainer", *command[position:]])


def _fail(text: str) -> NoReturn:
    raise UserError(text)


def main() -> int:
    """Supervises the command that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--max_restarts",
        type=program.at_least(0),
        default=5,
        help="restarts in a row, without a newer checkpoint, before it gives up; %(default)s",
    )
    parser.add_argument(
        "--first_pause_sec",
        type=program.at_least(0, float),
        default=2.0,
        help="before a restart; %(default)s",
    )
    parser.add_argument("command", nargs="+", help="what to run, after --")
    arguments = parser.parse_args()
    logdir = os.path.expanduser(find_logdir(arguments.command) or "")
    if not logdir:
        _fail("the command must have --logdir: what is not saved can't be taken up again")
    check_flags(arguments.command)
    streams.never_wait()
    process_tree.adopt_orphans()
    log = Log(Path(logdir) / "supervise.log")
    failures = Failures(arguments.max_restarts, arguments.first_pause_sec)
    launch = Launch(arguments.command, Path(logdir))
    return supervise(launch, failures, Path(logdir), log)


if __name__ == "__main__":
    program.run(main)
