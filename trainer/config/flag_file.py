"""The flag file of a run: its folder's `flags`, which repeats the run.

`flags.flag_files` reads such files.
"""

import os
import re

from trainer.config import Config
from trainer.config.statement import Flag

NAME = "flags"
# What would be read as a comment, or without its outer spaces.
_UNREADABLE = re.compile(r"\s#(\s|$)|^\s|\s$")


def write(config: Config) -> str:
    """Returns the content of the file: each flag that the command line gives, one in a line.

    Paths are absolute, so that the file can be used from any folder.
    """
    lines = ["# The flags of this run, which go on with it: --flagfile=THIS_FILE"]
    lines += [_line(flag) for flag in config.flags() if flag.name in config.given]
    return "".join(f"{line}\n" for line in lines)


def _line(flag: Flag) -> str:
    if isinstance(flag.value, bool):
        return f"--{'' if flag.value else 'no'}{flag.name}"
    value = str(flag.value)
    if flag.statement.path is not None and "://" not in value:
        value = os.path.abspath(value)
    if _UNREADABLE.search(value) or not value.isprintable():
        return f"# --{flag.name} has a value that does not fit into a line of text"
    return f"--{flag.name}={value}"
