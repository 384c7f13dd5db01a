"""The flag file of a run: its folder's `flags`, with what the run was started with.

`flags.flag_files` reads such files.
"""

import os
import re

from trainer.config import Config
from trainer.config.statement import Flag

NAME = "flags"
HEADER = "# The flags of this run: with --logdir=DIR they go on with it there, or repeat it"
# What comes before a flag that counts in training alone; the line is a comment in other modes.
TRAINING = "#train "
_ABOUT_TRAINING = f"# What follows on {TRAINING.strip()} is read in training alone: how it begins"
# What would be read as a comment, without its outer spaces or without quotes of its own.
_NEEDS_QUOTES = re.compile(r"\s#|^[\s\"']|\s$")


def write(config: Config, workers: int = 1) -> str:
    """Returns the content of the file: each flag that the command line gives, one in a line.

    Paths are absolute, so that the file can be used from any folder. Of a run of several workers,
    which are no flag, a comment tells the number.
    """
    given = [flag for flag in config.flags() if flag.name in config.given]
    lines = [HEADER, *(_line(flag) for flag in given if not flag.statement.is_of_one_start)]
    if any(line.startswith(TRAINING) for line in lines):
        lines.insert(1, _ABOUT_TRAINING)
    if workers > 1:
        lines.insert(1, f"# Started with {workers} workers: --batch_size is that of each")
    return "".join(f"{line}\n" for line in lines)


def _line(flag: Flag) -> str:
    before = TRAINING if flag.statement.is_of_beginning else ""
    if isinstance(flag.value, bool):
        return f"{before}--{'' if flag.value else 'no'}{flag.name}"
    value = str(flag.value)
    if flag.statement.path is not None and "://" not in value and not os.path.isabs(value):
        value = os.path.join(os.getcwd(), value)  # Not abspath: what `..` is depends on links.
    # A quote behind which a comment could begin would end the value.
    quotes = [mark for mark in "\"'" if not re.search(rf"{mark}\s+#", value)]
    if not _NEEDS_QUOTES.search(value):
        quotes = [""]
    if not quotes or not value.isprintable():
        return f"# --{flag.name} has a value that does not fit into a line of text"
    return f"{before}--{flag.name}={quotes[0]}{value}{quotes[0]}"
