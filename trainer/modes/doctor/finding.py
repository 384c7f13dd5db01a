"""A line of doctor's report, and what there is to do about what is broken."""

import sys
from pathlib import Path
from typing import NamedTuple

RENEW = "run scripts/setup.sh"
# To be removed is only what setup.sh made, and marked as such.
_OURS = Path(sys.prefix, ".slim-horovod").exists()
AFRESH = f"remove {sys.prefix} and run scripts/setup.sh" if _OURS else f"{RENEW}, use its .venv"


class Finding(NamedTuple):
    """One line of the report. With a remedy, it is about something broken."""

    title: str
    text: str
    remedy: str | None = None
