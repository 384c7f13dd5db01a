"""Defines the flags, and turns a command line into a `Config`.

A flag has the name, type, default, bounds and help of its field in `trainer.config`. Here the
fields become absl's flags, and absl's errors become one line.
"""

import dataclasses
import os
from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args

from absl import flags as absl_flags

from trainer import config as config_lib
from trainer.config.statement import statement_of
from trainer.errors import ConfigError, UserError

GROUPS: dict[str, Any] = {
    field.name: field.type
    for field in dataclasses.fields(config_lib.Config)
    if dataclasses.is_dataclass(field.type)
}


class HelpRequested(Exception):
    """The request of --help. Its message is the text to print."""


def _value_type(annotation: Any) -> type:
    """Returns the type of a flag's value: `int` for `int | None`."""
    if isinstance(annotation, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _define_field(field: dataclasses.Field[Any], group: str, values: absl_flags.FlagValues) -> None:
    define: Any = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        bool: absl_flags.DEFINE_bool,
    }[_value_type(field.type)]
    define(
        field.name,
        field.default,
        statement_of(field).help,
        flag_values=values,
        module_name=group,
    )


def define(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Defines every flag in `values`, grouped as in `Config`; does nothing the second time."""
    if "mode" in values:
        return
    group = "mode"
    absl_flags.DEFINE_string(
        "mode",
        "train",
        f"One of {', '.join(config_lib.MODES)}.",
        flag_values=values,
        module_name=group,
    )
    absl_flags.DEFINE_bool(
        "benchmark",
        False,
        "Short for --mode=benchmark.",
        flag_values=values,
        module_name=group,
    )
    absl_flags.DEFINE_bool("help", False, "Print this.", flag_values=values, module_name=group)
    for name, group_type in GROUPS.items():
        for field in dataclasses.fields(group_type):
            _define_field(field, name, values)


def usage(values: absl_flags.FlagValues = absl_flags.FLAGS) -> str:
    """Returns the text of --help: every flag with its default and help, group by group."""
    return "\n".join(values.module_help(group) for group in ("mode", *GROUPS))


def _value(field: dataclasses.Field[Any], values: absl_flags.FlagValues) -> Any:
    """Returns the value of a field's flag; of a path with the home folder, which shells leave."""
    value: Any = values[field.name].value
    is_path = value is not None and statement_of(field).path is not None
    return os.path.expanduser(value) if is_path else value


def parse(
    argv: Sequence[str], values: absl_flags.FlagValues = absl_flags.FLAGS
) -> config_lib.Config:
    """Returns the configuration that a command line gives.

    Args:
      argv: name of the program and its arguments. `--flagfile=F` reads flags from F.
      values: absl's flags, which are defined where they are not yet, and parsed.

    Raises:
      UserError: the command line has an unknown flag, a value of the wrong type or outside its
        bounds, or an argument that the mode does not have.
      HelpRequested: --help is given.
    """
    define(values)
    values.set_gnu_getopt(True)  # Flags may follow the files of --mode=predict.
    try:
        rest = values(list(argv))[1:]
    except absl_flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile: must be UTF-8 ({error.reason})") from None
    if values.help:
        raise HelpRequested(usage(values))
    mode = values.mode
    if values.benchmark:
        if values["mode"].present and mode != "benchmark":
            raise ConfigError(
                f"--benchmark: must not be given with --mode={mode}: it means --mode=benchmark"
            )
        mode = "benchmark"
    if rest and mode != "predict":
        raise UserError(
            f"argument {rest[0]!r}: --mode={mode} takes flags only, of the form --name=value"
        )
    groups = {
        name: group_type(**{f.name: _value(f, values) for f in dataclasses.fields(group_type)})
        for name, group_type in GROUPS.items()
    }
    given = [
        field.name
        for group_type in GROUPS.values()
        for field in dataclasses.fields(group_type)
        if values[field.name].present
    ]
    return config_lib.Config(mode=mode, files=tuple(rest), given=tuple(given), **groups)
