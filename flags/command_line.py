"""Defines the flags and turns a command line into a `Config`.

A flag's name, type, default, bounds and help are its field's in `trainer.config`. Here is only what
absl has to know, and how its complaints become one line.
"""

import dataclasses
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
    """--help was given. The message is the text to print."""


def _value_type(annotation: Any) -> type:
    """The type of a flag's value: `int` for `int | None`."""
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
    """Defines every flag on `values`, grouped as in `Config`; does nothing the second time."""
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
    """Every flag with its default and help, group by group."""
    return "\n".join(values.module_help(group) for group in ("mode", *GROUPS))


def parse(
    argv: Sequence[str], values: absl_flags.FlagValues = absl_flags.FLAGS
) -> config_lib.Config:
    """The configuration that a command line asks for.

    Args:
      argv: the program's name and its arguments. `--flagfile=F` reads flags from F.
      values: where the flags are (or come to be) defined and parsed.

    Raises:
      UserError: an unknown flag, a value of the wrong type or outside its bounds, or an argument
        that the mode does not take.
      HelpRequested: --help.
    """
    define(values)
    values.set_gnu_getopt(True)  # Flags may follow the files of --mode=predict.
    try:
        rest = values(list(argv))[1:]
    except absl_flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
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
        name: group_type(**{f.name: values[f.name].value for f in dataclasses.fields(group_type)})
        for name, group_type in GROUPS.items()
    }
    given = [
        field.name
        for group_type in GROUPS.values()
        for field in dataclasses.fields(group_type)
        if values[field.name].present
    ]
    return config_lib.Config(mode=mode, files=tuple(rest), given=tuple(given), **groups)
