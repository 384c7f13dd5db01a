"""Files that a run leaves for programs: --result_json and model.json."""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checkpoints import layout, model_file, restore
from trainer.config import Config, flag_file
from trainer.config.statement import AUTO
from trainer.distributed import Group, Worker
from trainer.errors import UserError, status_of
from trainer.graph.network import find_network
from trainer.inputs import class_names
from trainer.inputs.dataset import DatasetInfo
from trainer.machine import environment
from trainer.process import files, launcher

_NUMBER = r"-?\d[\d.e+-]*"
# Not within a string, in which line breaks are escaped.
_NUMBERS = re.compile(rf"\[\n +({_NUMBER}(?:,\n +{_NUMBER})*)\n +\]")


def check_places(config: Config, worker: Worker, *, logs: bool = True) -> None:
    """Finds out before a run whether its files can be written; on rank 0, which writes them.

    Args:
      config: configuration of the run.
      worker: this worker.
      logs: whether anything will be written into --logdir.

    Raises:
      UserError: one of them can't.
    """
    if worker.rank != 0:
        return
    if config.run.logdir is not None and logs:
        files.check_writable(config.run.logdir, "logdir", is_folder=True)
    if config.run.result_json is not None:
        files.check_writable(config.run.result_json, "result_json", is_folder=False)
        files.sweep_beside(config.run.result_json)


def report(config: Config, worker: Worker, result: dict[str, Any], *, text: str) -> None:
    """Writes --result_json, where it is given, and prints `text`; on rank 0 alone."""
    write_result(config, worker, result)
    if worker.rank == 0:
        # Not among predictions, which programs read.
        file = sys.stderr if config.prediction.takes_standard_output else sys.stdout
        print(text, file=file, flush=True)


def write_result(config: Config, worker: Worker, result: dict[str, Any]) -> None:
    """Writes --result_json, where it is given; on rank 0 alone.

    Numbers in `result` that are not finite become null.

    Raises:
      UserError: the file can't be written.
    """
    if worker.rank != 0 or config.run.result_json is None:
        return
    here = environment.describe(worker.local_rank, worker.local_size)
    content = {
        "mode": config.mode,
        "config": dataclasses.asdict(config),
        "environment": dataclasses.asdict(here),
        "result": result,
    }
    # JSON has no NaN and no Infinity, which a run that has diverged has among its results.
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    _write("result_json", config.run.result_json, content)


def _write(flag: str, path: str | Path, content: dict[str, Any]) -> None:
    """Writes a file of JSON.

    Raises:
      UserError: it can't be written; the message names the flag that it belongs to.
    """
    try:
        files.write_text(path, _as_text(content))
    except OSError as error:
        raise unwritable(flag, path, error) from error


def _as_text(content: dict[str, Any]) -> str:
    """Returns indented JSON in which a list of numbers, such as a matrix's row, is one line."""
    text = json.dumps(content, indent=2)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def unwritable(flag: str, path: str | Path, error: OSError) -> UserError:
    """Returns the error of a file that a flag asks for and that could not be written."""
    return UserError(
        f"--{flag}: {path} could not be written ({error.strerror})", status=status_of(error)
    )


def as_read(config: Config, info: DatasetInfo) -> Config:
    """Returns the configuration with what the data decided where a flag leaves that to them."""
    if config.data.exif_orientation != AUTO:
        return config
    return model_file.replace_flags(config, {model_file.LEFT_TO_DATA: info.exif_orientation})


def describe_run(config: Config, worker: Worker, info: DatasetInfo, *, replaces: bool) -> None:
    """Writes what others need to know of the run into its folder: `model.json` and `flags`.

    Args:
      config: configuration of the run.
      worker: this worker; only rank 0 writes.
      info: the data, which have the names of the classes.
      replaces: whether files that are there are written anew. A run that is complete keeps its own,
        unless model.json is damaged: no step was made with other flags.

    Raises:
      UserError: a file can't be written.
    """
    folder = Path(config.run.logdir or "")
    found = None
    with contextlib.suppress(UserError):
        found = model_file.read(folder)
    if replaces or found is None:
        write_model(as_read(config, info), worker, info.class_names)
    if replaces or not (folder / flag_file.NAME).exists():
        write_flags(config, worker)


def write_model(config: Config, worker: Worker, names: Sequence[str] | None) -> None:
    """Writes `<logdir>/model.json`; see `model_file`.

    Args:
      config: configuration of the run.
      worker: this worker; only rank 0 writes.
      names: names of the classes; None where they are not known.

    Raises:
      UserError: the file can't be written.
    """
    if config.run.logdir is None or worker.rank != 0:
        return
    try:
        model_file.write(Path(config.run.logdir), config, names)
    except OSError as error:
        raise unwritable("logdir", Path(config.run.logdir) / layout.MODEL, error) from error


def write_flags(config: Config, worker: Worker) -> None:
    """Writes `<logdir>/flags`, which repeats the run; on rank 0 alone.

    Raises:
      UserError: the file can't be written.
    """
    if config.run.logdir is None or worker.rank != 0:
        return
    path = Path(config.run.logdir) / flag_file.NAME
    try:
        if path.exists() and not path.read_bytes().startswith(flag_file.HEADER.encode()):
            return  # It is somebody's own file.
        files.write_text(path, flag_file.write(config, worker.size))
    except OSError as error:
        raise unwritable("logdir", path, error) from error


def check_classes(config: Config, worker: Worker, info: DatasetInfo) -> None:
    """Compares the classes of the data with those of the run that is resumed; on rank 0.

    Labels are the places of classes among their names: with another list of names, a network that
    goes on learns other labels than it has learned.

    Raises:
      UserError: there are more or fewer of them, or other names without --new_class_names.
    """
    logdir = config.run.logdir
    if worker.rank != 0 or logdir is None or not (steps := layout.steps_in(logdir)):
        return
    names = _names_of_run(logdir)
    advice = "Give the data that it began with, or another --logdir"
    had = restore.find_classes(layout.prefix_of(logdir, steps[0]))
    if had is not None and had != info.num_classes:
        apart = class_names.describe_apart(names or (), info.class_names or ())
        raise UserError(
            f"--data_dir: this data has {info.num_classes} classes, the run in {logdir} had {had}"
            f"{apart}. {advice}"
        )
    if names is None or info.class_names is None or config.run.new_class_names:
        return
    difference = class_names.first_difference(names, info.class_names)
    if difference is not None:
        raise UserError(
            f"--data_dir: its classes are not those that the run in {logdir} has learned: "
            f"{difference}. {advice}, or --new_class_names to go on with other labels"
        )


def _names_of_run(logdir: str) -> tuple[str, ...] | None:
    """Returns the names of the classes of the run in a folder; None where they are not known."""
    try:
        found = model_file.read(Path(logdir))
    except UserError:
        return None  # It is damaged, and will be written anew.
    return None if found is None else found.class_names


def as_begun(config: Config, group: Group) -> tuple[Config, tuple[str, ...]]:
    """Returns the configuration of a run that goes on, and a line about what was changed in it.

    Flags that not all versions have had stay what they were when the run was begun, unless they are
    given. What the data decided at the beginning stays, too, without a line. All workers call it,
    with the same result: rank 0 knows the run's folder.
    """
    logdir, flags, told = config.run.logdir, {}, {}
    is_synthetic = config.data.dataset == "synthetic" or (
        config.data.dataset is None and config.data.data_dir is None
    )
    if (
        group.worker.rank == 0
        and logdir is not None
        and config.run.resume != "never"
        and not is_synthetic
    ):
        with contextlib.suppress(UserError):  # A damaged file will be written anew.
            found = model_file.read(Path(logdir))
            if found is not None and layout.steps_in(logdir):
                flags = model_file.as_begun(found, config)
                silent = {*found.flags} & {model_file.LEFT_TO_DATA}
                told = {name: value for name, value in flags.items() if name not in silent}
    flags, told = group.gather((flags, told))[0]
    if not flags:
        return config, ()
    config = model_file.replace_flags(config, flags)
    # As if they had been given, so that the run's flag file repeats the run.
    config = dataclasses.replace(config, given=(*config.given, *flags))
    text = " ".join(f"--{name}={value}" for name, value in told.items())
    return config, (f"the run goes on as before, with {text}",) if told else ()


class Trained(NamedTuple):
    """The known facts about the checkpoint that a mode uses.

    Attributes:
      config: configuration with the network's own flags.
      is_described: whether it has a model.json.
      class_names: names of the classes, by label; None where they are not known.
      remarks: a line about what is assumed, where there is no model.json, or it does not tell.
      changed: flags of the network whose values were given and are others than in model.json, with
        the values that they have there.
    """

    config: Config
    is_described: bool
    class_names: tuple[str, ...] | None
    remarks: tuple[str, ...]
    changed: tuple[str, ...] = ()


def as_trained(config: Config) -> Trained:
    """Returns the configuration for using a trained network, by the model.json of its checkpoint.

    Raises:
      UserError: that file is damaged.
      ConfigError: there is no such network, or images are too small for it.
    """
    found = model_file.find(config.run)
    if found is not None:
        remarks = model_file.describe_undecided(config, found)
        config = model_file.apply(config, found)
        changed = model_file.describe_changed(config, found)
        _check_size(config)
        return Trained(config, True, found.class_names, remarks, changed)
    _check_size(config)
    assumed = model_file.describe_assumed(config)
    return Trained(config, False, None, () if assumed is None else (assumed,))


def _check_size(config: Config) -> None:
    """Raises ConfigError where the images of an evaluation are too small for the network."""
    flag = "image_size" if config.data.eval_image_size is None else "eval_image_size"
    find_network(config.model, config.data.evaluation_size, flag=flag)


def remark(*lines: str) -> None:
    """Prints lines on standard error, as the first of a run's workers alone."""
    if launcher.is_first():
        for text in lines:
            print(f"slim-horovod: {text}", file=sys.stderr, flush=True)
