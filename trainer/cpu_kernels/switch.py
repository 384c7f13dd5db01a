"""The environment variable that turns the compiled operations off, or names others."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.errors import UserError

VARIABLE = "SLIM_HOROVOD_KERNELS"
_ON, _OFF = "1", "0"
_SUFFIX = ".so"


class Setting(NamedTuple):
    """The environment's choice of compiled operations.

    Attributes:
      is_on: whether they are used where they are built, this CPU can run them, and they are faster.
      library: the file to load in place of the built one, on any CPU: it is for those who test the
        operations, with a build that emulates the instructions or has sanitizers. None: the built
        one.
    """

    is_on: bool
    library: Path | None = None


def read(environ: Mapping[str, str] = os.environ) -> Setting:
    """Returns what the environment says at this moment.

    Raises:
      UserError: the variable has a value that its rule forbids.
    """
    value = environ.get(VARIABLE, _ON)
    if value in (_ON, _OFF):
        return Setting(is_on=value == _ON)
    library = Path(value).absolute()
    if library.suffix == _SUFFIX and library.is_file():
        return Setting(is_on=True, library=library)
    raise UserError(
        f"{VARIABLE}: must be {_OFF} (off), {_ON} (on) or a {_SUFFIX} file that exists, "
        f"got {value!r}"
    )
