"""Finds --batch_size=auto: the largest batch that fits in memory, by trial.

A trial trains a few steps in a process of its own, with the flags of the run and random images. The
searching process does without TensorFlow, so that it takes no memory of what the trials have. They
have a little less memory than the run: it has an input and checkpoints besides.
"""

import contextlib
import dataclasses
import json
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trainer import exit_status
from trainer.benchmark.runs import Say
from trainer.checkpoints import layout, manifest
from trainer.config import (
    BenchmarkConfig,
    Config,
    DataConfig,
    RunConfig,
    TelemetryConfig,
)
from trainer.errors import ConfigError, UserError
from trainer.machine import free_memory
from trainer.process import launcher, settings
from trainer.process.alone import Ended, explain, run_alone, to_flags

# More is never tried: such a batch costs more than it can bring.
MOST = 2**16
_FIRST_ON_GPU = 32
_STEPS = 3
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
# An update of two batches has the sums of gradients that one of more has.
_ACCUMULATED = 2
_NAME = "batch_size"
# What is written where memory is refused before TensorFlow can name it: by C++, Python, the
# dynamic loader, and TensorFlow's threads.
_SAID_OF_SHORTAGE = (
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "failed to map segment",
    "pthread_create() failed",
)
# By oneDNN, with a status (5) that stands for more than memory.
_SAID_OF_FAILURE = "message: could not execute a primitive"


def search(fits: Callable[[int], bool], *, start: int, most: int) -> int:
    """Returns the largest number that fits, or 0 where not even 1 does.

    It goes from `start` by factors of two to a number that fits beside one that does not, and
    halves what is between them.

    Args:
      fits: function that tries a number; where one fits, all below do.
      start: number to try first, at least 1.
      most: number that is not exceeded, at least 1.
    """
    fitting, missing = 0, most + 1
    size = min(start, most)
    while missing - fitting > 1:
        if fits(size):
            fitting = size
        else:
            missing = size
        size = min(2 * fitting, most) if missing > most else (fitting + missing) // 2
    return fitting


class _Facts(NamedTuple):
    """Facts about the network and the data that a search has to know.

    Attributes:
      num_classes: number of the network's logits.
      train_examples: number of training examples; None without data.
      bytes_per_image: activations of an image.
      fixed_bytes: memory that training keeps besides, whatever the batch.
    """

    num_classes: int
    train_examples: int | None
    bytes_per_image: int
    fixed_bytes: int


def find(config: Config, say: Say) -> Config:
    """Returns a configuration with the largest batch that fits, or that of the run that goes on.

    Args:
      config: configuration in which the batch size is automatic.
      say: function that prints a line: one about each trial, and one about the result.

    Raises:
      UserError: not even one image fits, a trial failed in another way, or a launcher has started
        this process: workers would try beside each other.
      KeyboardInterrupt: Ctrl-C came.
    """
    if launcher.find() is not None:
        raise ConfigError(
            "--batch_size: must be a number under a launcher, got 'auto'. Find it in one process "
            "that has a worker's share of memory, such as prlimit --data=BYTES python -m trainer "
            "--mode=describe --batch_size=auto, with the other flags of the run"
        )
    size = _size_of_run(config)
    if size is not None:
        say(f"--batch_size=auto: the run goes on with its --batch_size={size}")
    else:
        size = _search(config, _find_facts(config), say)
    return _with_size(config, size)


def _with_size(config: Config, size: int) -> Config:
    data = dataclasses.replace(config.data, batch_size=size)
    return dataclasses.replace(config, data=data, automatic=())


def _size_of_run(config: Config) -> int | None:
    """Returns the batch size of the run that is to go on; None where one begins, or none is known.

    It is the one that the newest checkpoint was made with.
    """
    logdir = config.run.logdir
    if config.mode != "train" or logdir is None or config.run.resume == "never":
        return None
    found = manifest.read(Path(logdir))
    for step in layout.steps_in(logdir):
        entry = found.find(step)
        size = entry and entry.run.config.get("data", {}).get(_NAME)
        if isinstance(size, int):
            return size
    return None


def _find_facts(config: Config) -> _Facts:
    """Makes --mode=describe open the data and build the network, before minutes go into trials.

    Raises:
      UserError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="batch-size-") as folder:
        path = Path(folder) / "result.json"
        child = dataclasses.replace(
            _with_size(config, 1),
            mode="describe",
            run=dataclasses.replace(config.run, result_json=str(path)),
            benchmark=BenchmarkConfig(),
        )
        if _run(child).status != 0:
            raise _none_fits(config)
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
    kept: dict[str, int] = result["training_bytes"]
    per_image = kept["activations"] + kept["recomputed"]
    return _Facts(
        num_classes=result["num_classes"],
        train_examples=result["train_examples"],
        bytes_per_image=per_image,
        fixed_bytes=sum(kept.values()) - per_image,
    )


def _run(config: Config) -> Ended:
    """Runs a configuration in a process of its own, which may end since memory does not suffice.

    Raises:
      UserError: it failed in another way.
      KeyboardInterrupt: Ctrl-C came.
    """
    ended = run_alone(to_flags(config), {}, quiet=True)
    if ended.is_interrupted or ended.status == exit_status.INTERRUPTED:
        raise KeyboardInterrupt
    if ended.status == 0 or is_miss(ended, config.data.batch_size):
        return ended
    if ended.status < 0:
        raise UserError(
            f"--batch_size: auto has found none: a trial of {config.data.batch_size} was ended by "
            f"{signal.Signals(-ended.status).name}. Give a number",
            status=exit_status.FAILED,
        )
    raise UserError(explain(ended).reason, status=ended.status)


def is_miss(ended: Ended, size: int) -> bool:
    """Returns whether a trial of a batch has ended since memory did not suffice.

    Libraries may crash where they are refused memory, and oneDNN may just fail. Where one image
    does so, another fault is likelier, unless a line says so.
    """
    if ended.status in (exit_status.OUT_OF_MEMORY, -signal.SIGKILL):
        return True
    is_crash = -ended.status in _CRASHES
    if not is_crash and ended.status != exit_status.FAILED:
        return False
    if any(text in ended.errors for text in _SAID_OF_SHORTAGE):
        return True
    return size > 1 and (is_crash or _SAID_OF_FAILURE in ended.errors)


def create_trial(config: Config, size: int, num_classes: int) -> Config:
    """Returns the configuration of a trial: a few steps of the run, with random images.

    What needs as much memory whatever its value has one that does without data and weights.

    Args:
      config: configuration of the run.
      size: number of images of the batch.
      num_classes: number of the network's logits.
    """
    return Config(
        mode="train",
        model=dataclasses.replace(config.model, num_classes=num_classes),
        data=DataConfig(
            dataset="synthetic",
            image_size=_largest_size(config),
            batch_size=size,
            preprocessing=config.data.preprocessing,
        ),
        optimizer=dataclasses.replace(
            config.optimizer,
            accumulate_steps=min(_ACCUMULATED, config.optimizer.accumulate_steps),
        ),
        fine_tuning=dataclasses.replace(
            config.fine_tuning, exclude_scopes=None, ignore_missing=False, init_averages=False
        ),
        communication=config.communication,
        run=RunConfig(
            steps=_STEPS,
            seed=config.run.seed,
            deterministic=config.run.deterministic,
            watchdog_seconds=config.run.watchdog_seconds,
            on_nonfinite="skip",
        ),
        telemetry=TelemetryConfig(),
    )


def _search(config: Config, facts: _Facts, say: Say) -> int:
    """Returns the largest batch of which trials fit.

    Raises:
      UserError: see `find`.
      KeyboardInterrupt: Ctrl-C came.
    """
    examples = facts.train_examples or MOST
    most = max(1, min(MOST, examples // config.optimizer.accumulate_steps))
    tried: dict[int, bool] = {}

    def fits(size: int) -> bool:
        trial = create_trial(config, size, facts.num_classes)
        # A GPU's memory has its own limit, and its driver reserves more than there is.
        with contextlib.nullcontext() if settings.has_gpu() else free_memory.limited_for_others():
            ended = _run(trial)
        tried[size] = ended.status == 0
        by = f" (ended by {signal.Signals(-ended.status).name})" if ended.status < 0 else ""
        say(f"batch {size}: {'fits' if tried[size] else f'does not fit{by}'}")
        return tried[size]

    found = search(fits, start=_guess(facts), most=most)
    if found == 0:
        raise _none_fits(config)
    why = "the largest that fits in memory"
    if found == most:
        why = "as many as are tried" if most == MOST else "all examples of an update"
    say(f"--batch_size={found}: {why}, after {len(tried)} trials")
    return found


def _none_fits(config: Config) -> UserError:
    return UserError(
        f"--batch_size: auto has found none: not even one image of {_largest_size(config)} px fits "
        "in memory. Try --precision=bfloat16, --recompute=blocks or smaller images",
        status=exit_status.OUT_OF_MEMORY,
    )


def _largest_size(config: Config) -> int:
    """Returns the height and width of the run's largest training images, pixels."""
    return max(size for _, size in config.data.sizes_by_epoch)


def _guess(facts: _Facts) -> int:
    """Returns the power of two to begin with: the largest that may fit by what training keeps."""
    if settings.has_gpu():
        return _FIRST_ON_GPU
    room = free_memory.usable_bytes() - facts.fixed_bytes
    images = max(1, room // max(1, facts.bytes_per_image))
    return 2 ** (min(images, MOST).bit_length() - 1)
