"""model.json: what a checkpoint does not say of its network, its input and its classes.

A run writes the file beside its checkpoints, and beside its best one, so that either folder can be
used, or copied, by itself.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checkpoints import layout, search
from trainer.config import Config, Flag, RunConfig
from trainer.config.statement import AUTO
from trainer.errors import ConfigError, UserError
from trainer.process import files, json_files

_CLASS_NAMES = "class_names"
# The flag that, where it is auto, the data decide; a run's files have what they decided.
LEFT_TO_DATA = "exif_orientation"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The content of a model.json.

    Attributes:
      path: the file.
      flags: values of the flags that belong to a network, by name.
      class_names: names of the classes, by label; None where they were not known.
    """

    path: Path
    flags: Mapping[str, Any]
    class_names: tuple[str, ...] | None


class _Names(NamedTuple):
    class_names: tuple[str, ...] | None


def write(folder: Path, config: Config, class_names: Sequence[str] | None) -> None:
    """Writes the file of a run into the folder of its checkpoints.

    Raises:
      OSError: it could not be written.
    """
    flags = {flag.name: flag.value for flag in list_flags(config)}
    content = {_CLASS_NAMES: class_names and list(class_names), **flags}
    files.write_text(folder / layout.MODEL, json.dumps(content, indent=2) + "\n")


def list_flags(config: Config) -> list[Flag]:
    """Returns the flags that belong to the network rather than to the run."""
    return [flag for flag in config.flags() if flag.statement.belongs_to_model]


def find(config: RunConfig) -> ModelFile | None:
    """Returns the file that describes the checkpoint that a mode will use.

    It is looked for beside --init_checkpoint or --checkpoint, or in --logdir where none is given;
    for the best checkpoint of a run also in the run's folder.

    Raises:
      UserError: the file can't be read, or holds something else.
    """
    for folder in _places(config):
        found = read(folder)
        if found is not None:
            return found
    return None


def _places(config: RunConfig) -> list[Path]:
    """Returns the folders in which the file may be, those that know best first."""
    given = config.chosen_checkpoint
    if given is not None:
        folder = search.folder_of(given) or Path(given).parent
    elif config.logdir is not None:
        folder = Path(config.logdir)
    else:
        return []
    return [folder, folder.parent] if folder.absolute().name == layout.BEST else [folder]


def read(folder: Path) -> ModelFile | None:
    """Reads the file in a folder; returns None where there is none.

    Raises:
      UserError: the file can't be read, or holds something else.
    """
    path = folder / layout.MODEL
    try:
        model = json_files.build(dict[str, Any], json_files.read(path))
        names = json_files.build(_Names, {_CLASS_NAMES: model.get(_CLASS_NAMES)})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json_files.FormatError) as error:
        raise _unreadable(path, str(error)) from error
    flags = {name: value for name, value in model.items() if name != _CLASS_NAMES}
    return ModelFile(path, flags, names.class_names)


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: cannot be read ({reason}). Remove it, and give the network's flags "
        "(--model, --image_size, ...) on the command line"
    )


def apply(config: Config, found: ModelFile) -> Config:
    """Returns a configuration with a network's own flags, but for those of the command line.

    A network that was trained on digits of 32 pixels must not get them at 224.

    Raises:
      UserError: the file has a value that its flag cannot have.
    """
    for flag in list_flags(config):
        if flag.name in config.given:
            continue
        if flag.name == "eval_image_size" and "image_size" in config.given:
            continue  # Whoever gives a size to evaluate at means this one.
        # The file of an earlier version lacks newer flags.
        value = found.flags.get(flag.name, flag.statement.before)
        if value is None:
            continue
        reason = f"{flag.name} is {value!r}"
        types = (int,) if flag.default is None else (type(flag.default),)
        if type(value) not in types and not (
            isinstance(flag.default, float) and type(value) is int
        ):
            raise _unreadable(found.path, reason)
        try:
            config = replace_flags(config, {flag.name: value})
        except ConfigError as error:
            raise _unreadable(found.path, str(error)) from error
    return config


def describe_changed(config: Config, found: ModelFile) -> tuple[str, ...]:
    """Returns the network's flags whose values differ from the file's, with those of the file."""
    sizes = ("image_size", "eval_image_size")
    changed = []
    for flag in list_flags(config):
        had = found.flags.get(flag.name, flag.statement.before)
        if flag.name not in sizes and had not in (None, AUTO, flag.value):
            changed.append(f"--{flag.name}={had}")
    size = found.flags.get("eval_image_size") or found.flags.get("image_size")
    if size is not None and size != config.data.evaluation_size:
        changed.append(f"images of {size} px")
    return tuple(changed)


def as_begun(found: ModelFile, config: Config) -> dict[str, Any]:
    """Returns the flags, by name, in which a run that goes on would differ from how it was begun.

    These are flags that not all versions have had, and that the command line does not give. Runs
    that were begun without them are to go on without what they do.

    Args:
      found: the file of the run.
      config: configuration of the run.
    """
    changed = {}
    for flag in list_flags(config):
        before = flag.statement.before
        if before is None or flag.name in config.given:
            continue
        value = found.flags.get(flag.name, before)
        if value != flag.value and value in (flag.statement.choices or (before,)):
            changed[flag.name] = value
    return changed


def describe_undecided(config: Config, found: ModelFile) -> tuple[str, ...]:
    """Returns a line where picture files are read, and the file does not say how training did.

    Runs of earlier versions did not write what --exif_orientation=auto came to.
    """
    is_known = found.flags.get(LEFT_TO_DATA) != AUTO or LEFT_TO_DATA in config.given
    if is_known or config.mode not in ("predict", "export"):
        return ()
    return (
        f"{found.path} does not say whether training turned pictures upright; here they are. Give "
        f"--{LEFT_TO_DATA}=ignore where it was on TFRecords without dataset.json",
    )


def replace_flags(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values of some flags, by name.

    Raises:
      ConfigError: a flag can't have a value.
    """
    for flag in config.flags():
        if flag.name in values:
            group = getattr(config, flag.group)
            group = dataclasses.replace(group, **{flag.name: values[flag.name]})
            config = dataclasses.replace(config, **{flag.group: group})
    return config


def describe_assumed(config: Config) -> str | None:
    """Returns a line about the flags of the network that were not given; None: all were."""
    flags = [f"--{f.name}={f.value}" for f in list_flags(config) if f.value is not None]
    assumed = [text for text in flags if text.split("=")[0][2:] not in config.given]
    if not assumed or not _places(config.run):
        return None
    place = _places(config.run)[0]
    return (
        f"{place} has no {layout.MODEL}; assumed are {' '.join(assumed)}, and numbers for classes"
    )


def describe_start(config: Config) -> tuple[str, ...]:
    """Returns a line where a run starts from weights that were made with another network.

    Their names and shapes may fit all the same: Keras' networks differ from slim's in a pool alone.
    """
    run = config.run
    is_resumed = run.logdir is not None and layout.steps_in(run.logdir)
    found = None
    if run.init_checkpoint is not None and not is_resumed:
        with contextlib.suppress(UserError):  # A damaged one, which training does not need.
            found = find(run)
    if found is None:
        return ()
    of_weights = [flag for flag in list_flags(config) if flag.statement.belongs_to_weights]
    other = [f for f in of_weights if found.flags.get(f.name, f.value) != f.value]
    if not other:
        return ()
    made = " ".join(f"--{flag.name}={found.flags[flag.name]}" for flag in other)
    ours = " ".join(f"--{flag.name}={flag.value}" for flag in other)
    return (f"the weights were made with {made} ({found.path}); this run has {ours}",)
