"""Flag files: a word of the command line in each line, and comments."""

import os
import re
from collections.abc import Sequence

from trainer.errors import UserError

_FLAG = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)
# A line that is one, or what follows a # between spaces: a value may have a # within it.
_COMMENT = re.compile(r"^\s*(#|//).*|\s#(\s.*)?$")


def expand(words: Sequence[str], *, within: Sequence[str] = ()) -> list[str]:
    """Puts the words of flag files in the place of every `--flagfile`, also of those in files.

    A file that names itself, or one that it is in, is passed over there.

    Args:
      words: words of a command line. Those behind `--` are no flags.
      within: the flag files that they are in, each within the one before.

    Raises:
      UserError: a file can't be read, or is not UTF-8.
    """
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
            expanded += expand(_read(path), within=(*within, path))
    return expanded


def _read(path: str) -> list[str]:
    """Returns the words of a flag file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [_COMMENT.sub("", line).strip() for line in file]
    except OSError as error:
        raise UserError(
            f"--flagfile: must be a file that can be read, got '{path}' ({error.strerror})"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--flagfile: must be UTF-8 ({error.reason}), got '{path}'") from None
    return [line for line in lines if line]
