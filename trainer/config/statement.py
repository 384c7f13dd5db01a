"""The statement of a flag in the configuration, and the check of its value.

Whatever a part of the program has to know of a flag is stated with the flag. By its statement a new
flag appears everywhere: in --help, among the flags that TensorBoard's HParams compares, in the
comparison with the run that made a checkpoint, and in model.json.
"""

import dataclasses
import enum
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from trainer.errors import ConfigError

T = TypeVar("T")

_KEY = "flag"
# The word for a value that the program is to find itself.
AUTO = "auto"


class PathKind(enum.Enum):
    """The place of what a flag names, and who opens it."""

    LOCAL = enum.auto()
    LOCAL_OF_TENSORFLOW = enum.auto()  # It takes a path in UTF-8 alone.
    LOCAL_OR_REMOTE = enum.auto()


class Statement(NamedTuple):
    """The statement of a flag.

    Attributes:
      help: text for --help, one sentence, with the unit.
      minimum, above: inclusive and exclusive lower bound of a number.
      maximum, below: inclusive and exclusive upper bound of a number.
      choices: allowed values of a string.
      is_hparam: whether TensorBoard's HParams tab compares runs by the flag.
      changes_training: whether a resumed run that has another value computes something else, which
        is then reported.
      belongs_to_model: whether the flag is written to model.json, since whoever uses the trained
        network has to have the same value.
      belongs_to_weights: whether weights are for this value alone: with another one they predict
        otherwise, although their names and shapes fit.
      chooses_data: whether the flag says which data a run has, which its evaluations have, too.
      is_of_one_start: whether the flag is of one start, or of one place: a run's flag file leaves
        it out, and whoever uses the file says it anew.
      is_of_beginning: whether the flag says what a run begins with: other modes than training do
        not read it in the run's flag file, in place of what the run has learned.
      path: kind of a file or folder that the flag names; None: it names none.
      is_written: whether the program writes the file that the flag names, which must then be
        another one than those of such flags.
      needs: name of the flag that must be given with this one; None: none must.
      read_by: kinds of data sets that read the flag; None: all. A plug-in may read any.
      modes: modes that use the flag, and others refuse; None: all.
      before: value of runs that were made before there was the flag; None: the default.
      elsewhere: names that other programs have for the flag, which are suggested from.
      may_be_auto: whether the flag may be `auto`: the program then finds the value itself.
      short_name: name of one letter, which the flag has besides; None: it has none.
    """

    help: str
    minimum: float | None
    above: float | None
    maximum: float | None
    below: float | None
    choices: Sequence[str] | None
    is_hparam: bool
    changes_training: bool
    belongs_to_model: bool
    belongs_to_weights: bool
    chooses_data: bool
    is_of_one_start: bool
    is_of_beginning: bool
    path: PathKind | None
    is_written: bool
    needs: str | None
    read_by: Sequence[str] | None
    modes: Sequence[str] | None
    before: Any
    elsewhere: Sequence[str]
    may_be_auto: bool
    short_name: str | None


def flag(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    is_hparam: bool = False,
    changes_training: bool = True,
    belongs_to_model: bool = False,
    belongs_to_weights: bool = False,
    chooses_data: bool = False,
    is_of_one_start: bool = False,
    is_of_beginning: bool = False,
    path: PathKind | None = None,
    is_written: bool = False,
    needs: str | None = None,
    read_by: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    before: Any = None,
    elsewhere: Sequence[str] = (),
    may_be_auto: bool = False,
    short_name: str | None = None,
) -> T:
    """Returns a dataclass field that is also a flag.

    Args:
      default: value where the flag is not given. None: the help says what happens then.
      help, minimum, above, maximum, below, choices, is_hparam, changes_training, belongs_to_model,
        belongs_to_weights, chooses_data, is_of_one_start, is_of_beginning, path, is_written, needs,
        read_by, modes, before, elsewhere, may_be_auto, short_name: see `Statement`.
    """
    statement = Statement(
        help,
        minimum,
        above,
        maximum,
        below,
        choices,
        is_hparam,
        changes_training,
        belongs_to_model,
        belongs_to_weights,
        chooses_data,
        is_of_one_start,
        is_of_beginning,
        path,
        is_written,
        needs,
        read_by,
        modes,
        before,
        elsewhere,
        may_be_auto,
        short_name,
    )
    return dataclasses.field(default=default, metadata={_KEY: statement})


def statement_of(field: dataclasses.Field[Any]) -> Statement:
    """Returns the statement of a field that `flag` made."""
    return field.metadata[_KEY]


class Flag(NamedTuple):
    """A flag with its value.

    Attributes:
      group: name of the field of `Config` that has the flag.
      name: name of the flag, without dashes.
      value: value in this configuration.
      default: value where the flag is not given.
      statement: statement of the flag.
    """

    group: str
    name: str
    value: Any
    default: Any
    statement: Statement


def list_flags(config: Any) -> Iterator[Flag]:
    """Yields every flag of a configuration: a dataclass whose fields may be groups of flags."""
    for group in dataclasses.fields(config):
        values = getattr(config, group.name)
        if isinstance(values, Checked):
            for field in dataclasses.fields(values):  # type: ignore[arg-type]
                value = getattr(values, field.name)
                yield Flag(group.name, field.name, value, field.default, statement_of(field))


def _broken_rule(value: Any, statement: Statement) -> str | None:
    """Returns the rule that `value` breaks, in words, or None."""
    if statement.choices is not None and value not in statement.choices:
        return f"must be one of {', '.join(statement.choices)}"
    if statement.path in (PathKind.LOCAL, PathKind.LOCAL_OF_TENSORFLOW) and "://" in value:
        return "must be in a local or mounted folder, as only --data_dir may be remote"
    if statement.path is PathKind.LOCAL_OF_TENSORFLOW and not _is_utf8(value):
        return "must be in a folder whose path is UTF-8, as TensorFlow opens no other"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if statement.minimum is not None and value < statement.minimum:
        return f"must be at least {statement.minimum}"
    if statement.above is not None and value <= statement.above:
        return f"must be greater than {statement.above}"
    if statement.maximum is not None and value > statement.maximum:
        return f"must be at most {statement.maximum}"
    if statement.below is not None and value >= statement.below:
        return f"must be less than {statement.below}"
    return None


def _is_utf8(path: str) -> bool:
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        return False
    except OSError:  # The current folder has been removed: it can't be looked at.
        return True
    return True


def parse_by_epoch(text: str | None) -> tuple[tuple[float, float], ...]:
    """Returns the pairs of a flag of the form EPOCH:VALUE,...; () where they make no sense.

    Epochs have to rise; no number is negative.
    """
    try:
        pairs = [[float(part) for part in pair.split(":")] for pair in (text or "").split(",")]
        values = tuple((epoch, value) for epoch, value in pairs)
    except ValueError:
        return ()
    epochs = [epoch for epoch, _ in values]
    fit = all(math.isfinite(number) and number >= 0 for pair in values for number in pair)
    return values if fit and epochs == sorted(set(epochs)) else ()


class Checked:
    """The base of the groups of flags, which checks every field against its own rule."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value == "":
                raise ConfigError(f"--{field.name}: must not be empty, got ''")
            rule = None if value is None else _broken_rule(value, statement_of(field))
            if rule is not None:
                raise ConfigError(f"--{field.name}: {rule}, got {value!r}")
