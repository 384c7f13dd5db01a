"""The flag file of a run: its folder's `flags`, with what the run was started with.

`flags.flag_files` reads such files.
"""

import os
import re

from trainer.config import Config
from trainer.config.statement import Flag

NAME = "flags"
HEADER = "# The flags of this run: with --logdir=DIR they go on with it there, or repeat it"
# Flags of one start, or of one place: whoever uses the file says these anew.
_LEFT_OUT = frozenset({"logdir", "resume", "new_class_names", "result_json"})
# Read where a run begins, and in other modes in place of what it has learned.
_AT_THE_BEGINNING = "init_checkpoint"
# What would be read as a comment, or without its outer spaces.
_UNREADABLE = re.compile(r"\s#(\s|$)|^\s|\s$")


def write(config: Config) -> str:
    """Returns the content of the file: each flag that the command line gives, one in a line.

    Paths are absolute, so that the file can be used from any folder.
    """
    flags = [flag for flag in config.flags() if flag.name in set(config.given) - _LEFT_OUT]
    return "".join(f"{line}\n" for line in (HEADER, *map(_line, flags)))


def _line(flag: Flag) -> str:
    if isinstance(flag.value, bool):
        return f"--{'' if flag.value else 'no'}{flag.name}"
    value = str(flag.value)
    if flag.statement.path is not None and "://" not in value and not os.path.isabs(value):
        value = os.path.join(os.getcwd(), value)  # Not abspath: what `..` is depends on links.
    if _UNREADABLE.search(value) or not value.isprintable():
        return f"# --{flag.name} has a value that does not fit into a line of text"
    text = f"--{flag.name}={value}"
    return f"# {text}, to begin anew" if flag.name == _AT_THE_BEGINNING else text
