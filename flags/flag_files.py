"""Flag files: a word of the command line in each line, perhaps in quotes, and comments."""

import os
import re
from collections.abc import Sequence

from trainer.config.flag_file import TRAINING
from trainer.errors import UserError

_FLAG = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)
# A line that is one, or what follows a # behind white space: a value may have a # within it.
_COMMENT = re.compile(rf"^(#(?!{TRAINING[1:]}--)|//).*|\s#.*")
# A value in quotes, which may have anything between them.
_QUOTED = re.compile(
    rf"(?P<name>(?:{TRAINING})?--?\w+=)?(?P<quote>[\"'])(?P<value>.*?)(?P=quote)(\s+#.*)?"
)
_MODE = re.compile(r"--?mode(?:=(.*))?|--?(benchmark)(?:=(?:true|1))?", re.DOTALL)


def expand(words: Sequence[str]) -> list[str]:
    """Puts the words of flag files in the place of every `--flagfile`, also of those in files.

    A file that names itself, or one that it is in, is passed over there. What a run's own file has
    for training alone (`trainer.config.flag_file`) is left out in other modes.

    Args:
      words: words of a command line. Those behind `--` are no flags.

    Raises:
      UserError: a file can't be read, or is not UTF-8.
    """
    expanded = _expand(words, within=())
    if _mode_of(expanded) == "train":
        return [word.removeprefix(TRAINING) for word in expanded]
    return [word for word in expanded if not word.startswith(TRAINING)]


def _mode_of(words: Sequence[str]) -> str:
    """Returns the mode that a command line gives."""
    mode = "train"
    rest = iter(words)
    for word in rest:
        if word == "--":
            break
        if found := _MODE.fullmatch(word):
            mode = found[1] or found[2] or next(rest, "")
    return mode


def _expand(words: Sequence[str], *, within: Sequence[str]) -> list[str]:
    """Expands words that are in flag files, each within the one before."""
    expanded: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--" and not within:
            return [*expanded, word, *rest]
        flag = _FLAG.fullmatch(word)
        if flag is None:
            expanded.append(word)
            continue
        path = os.path.expanduser(next(rest, "") if flag[1] is None else flag[1])
        is_left_empty = flag[1] == ""  # As by a variable of the shell that is not set.
        if path not in within and not is_left_empty:
            expanded += _expand(_read(path), within=(*within, path))
    return expanded


def _read(path: str) -> list[str]:
    """Returns the words of a flag file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [_word_of(line.strip()) for line in file]
    except OSError as error:
        raise UserError(
            f"--flagfile: must be a file that can be read, got '{path}' ({error.strerror})"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile: must be UTF-8 ({error.reason}), got '{path}'") from None
    return [line for line in lines if line]


def _word_of(line: str) -> str:
    """Returns the word in a line of a flag file: without comments and quotes; empty: none."""
    if quoted := _QUOTED.fullmatch(line):
        return (quoted["name"] or "") + quoted["value"]
    return _COMMENT.sub("", line).rstrip()
