"""Defines the flags, and turns a command line into a `Config`.

A flag has the name, type, default, bounds and help of its field in `trainer.config`. Here the
fields become absl's flags, and absl's errors become one line.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args

from absl import flags as absl_flags

from flags import flag_files
from trainer import config as config_lib
from trainer.config import flag_file
from trainer.config.statement import AUTO, statement_of
from trainer.errors import ConfigError, UserError

GROUPS: dict[str, Any] = {
    field.name: field.type
    for field in dataclasses.fields(config_lib.Config)
    if dataclasses.is_dataclass(field.type)
}
# What Python and absl say of a value of another type than the flag's.
_OTHER_TYPE = re.compile(
    r"(flag --(\w+)=.*?: )"
    r"(\('Non-boolean argument|could not convert string|invalid literal for int).*"
)


class HelpRequested(Exception):
    """The request of --help. Its message is the text to print."""


class VersionRequested(Exception):
    """The request of --version."""


def _value_type(annotation: Any) -> type:
    """Returns the type of a flag's value: `int` for `int | None`."""
    if isinstance(annotation, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


class _IntegerOrAuto(absl_flags.IntegerParser):
    """Reads a whole number, or the word that has the program find it."""

    syntactic_help = f"an integer, or {AUTO}"

    def parse(self, argument: Any) -> Any:
        """Returns the number, or the word."""
        return AUTO if argument == AUTO else super().parse(argument)


def _define_field(field: dataclasses.Field[Any], group: str, values: absl_flags.FlagValues) -> None:
    define: Any = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        float: absl_flags.DEFINE_float,
        bool: absl_flags.DEFINE_bool,
    }[_value_type(field.type)]
    statement = statement_of(field)
    if statement.may_be_auto:
        define = functools.partial(
            absl_flags.DEFINE, _IntegerOrAuto(), serializer=absl_flags.ArgumentSerializer()
        )
    named = statement.choices or ()
    is_listed = all(choice in statement.help for choice in named)
    choices = "" if is_listed else f" One of {', '.join(named)}."
    define(
        field.name,
        field.default,
        statement.help + choices,
        flag_values=values,
        module_name=group,
        short_name=statement.short_name,
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
    for name, short_name, text in (
        ("help", "h", "Print this."),
        ("helpfull", None, "Likewise."),
        ("version", None, "Print the versions of this program and of what it stands on."),
    ):
        absl_flags.DEFINE_bool(
            name, False, text, flag_values=values, module_name=group, short_name=short_name
        )
    for name, group_type in GROUPS.items():
        for field in dataclasses.fields(group_type):
            _define_field(field, name, values)


def usage(values: absl_flags.FlagValues = absl_flags.FLAGS) -> str:
    """Returns the text of --help: every flag with its default and help, group by group."""
    return "\n".join(values.module_help(group) for group in ("mode", *GROUPS))


def _value(field: dataclasses.Field[Any], values: absl_flags.FlagValues) -> Any:
    """Returns the value of a field's flag; of a path with the home folder, which shells leave."""
    value: Any = values[field.name].value
    if statement_of(field).may_be_auto and value == AUTO:
        return field.default
    is_path = value is not None and statement_of(field).path is not None
    return os.path.expanduser(value) if is_path else value


def _describe_unknown(error: absl_flags.UnrecognizedFlagError) -> str:
    """Returns the line about an unknown flag, with this program's name for it where it has one."""
    if len(words := error.flagname.split(maxsplit=1)) > 1:  # A line of a flag file.
        return (
            f"Unknown command line flag '{error.flagname}'. A flag file has --{words[0]}={words[1]}"
        )
    name = error.flagname.replace("-", "_")
    for group_type in GROUPS.values():
        for field in dataclasses.fields(group_type):
            if name in (field.name, *statement_of(field).elsewhere):
                return f"Unknown command line flag '{error.flagname}'. Did you mean: {field.name}?"
    return _in_one_line(error)


def _describe_illegal(error: absl_flags.Error, values: absl_flags.FlagValues) -> str:
    """Returns the line about a value that a flag cannot have."""
    line = _in_one_line(error)
    if (found := _OTHER_TYPE.fullmatch(line)) is None:
        return line
    return f"{found[1]}must be {values[found[2]].parser.syntactic_help or 'true or false'}"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse(
    argv: Sequence[str], values: absl_flags.FlagValues = absl_flags.FLAGS
) -> config_lib.Config:
    """Returns the configuration that a command line gives.

    Args:
      argv: name of the program and its arguments. `--flagfile=F` reads flags from F; see
        `flag_files`. With --mode=evaluate, data that are not given are those of the run in
        --logdir.
      values: absl's flags, which are defined where they are not yet, and parsed.

    Raises:
      UserError: the command line has an unknown flag, a value of the wrong type or outside its
        bounds, or an argument that the mode does not have.
      HelpRequested, VersionRequested: --help or --version is given.
    """
    define(values)
    values.set_gnu_getopt(True)  # Flags may follow the files of --mode=predict.
    try:
        rest = values([*argv[:1], *flag_files.expand(argv[1:])])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UserError(_describe_unknown(error)) from None
    except absl_flags.Error as error:
        raise UserError(_describe_illegal(error, values)) from None
    except ValueError as error:  # absl's, of --noflag=value.
        raise UserError(_in_one_line(error)) from None
    if values.help or values.helpfull:
        raise HelpRequested(usage(values))
    if values.version:
        raise VersionRequested
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
    all_fields = [f for group_type in GROUPS.values() for f in dataclasses.fields(group_type)]
    given = [field.name for field in all_fields if values[field.name].present]
    unused = _unused_length(given, argv)
    given = [name for name in given if name != unused]
    automatic = [f.name for f in all_fields if statement_of(f).may_be_auto]
    automatic = [name for name in automatic if values[name].value == AUTO]
    groups = {
        name: group_type(
            **{
                f.name: _value(f, values)
                for f in dataclasses.fields(group_type)
                if f.name != unused
            }
        )
        for name, group_type in GROUPS.items()
    }
    config = config_lib.Config(
        mode=mode, files=tuple(rest), given=tuple(given), automatic=tuple(automatic), **groups
    )
    return _with_data_of_run(config) if mode == "evaluate" else config


def _unused_length(given: Sequence[str], argv: Sequence[str]) -> str | None:
    """Returns which of --steps and --epochs a flag file gives in vain; None: neither.

    Whoever gives one of them beside a recipe that has the other means that one.

    Args:
      given: names of all flags that are given.
      argv: the command line, before flag files are read.
    """
    lengths = {"steps", "epochs"}
    typed = lengths & {word.lstrip("-").partition("=")[0] for word in argv if word[:1] == "-"}
    if not lengths.issubset(given) or len(typed) != 1:
        return None
    return (lengths - typed).pop()


def _with_data_of_run(config: config_lib.Config) -> config_lib.Config:
    """Returns a configuration with the data of the run in --logdir, where none are given.

    Raises:
      UserError: the run's flag file is damaged.
    """
    path = os.path.join(config.run.logdir or "", flag_file.NAME)
    is_named = not {"data_dir", "dataset"}.isdisjoint(config.given)
    if is_named or config.run.logdir is None or not os.path.isfile(path):
        return config
    try:
        values = absl_flags.FlagValues()  # type: ignore[no-untyped-call]
        of_run = parse(["", f"--flagfile={path}", f"--logdir={config.run.logdir}"], values).data
    except UserError as error:
        raise UserError(f"--data_dir: must be given, since {path} is damaged ({error})") from None
    taken = {
        field.name: getattr(of_run, field.name)
        for field in dataclasses.fields(of_run)
        if statement_of(field).chooses_data and field.name not in config.given
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **taken))
