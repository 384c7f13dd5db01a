"""A line of doctor's report, and the remedies for what is broken."""

import sys
from pathlib import Path
from typing import NamedTuple

RENEW = "run scripts/setup.sh"
# setup.sh marks the environments that it makes: only such a one may be removed.
_OURS = Path(sys.prefix, ".slim-horovod").exists()
AFRESH = f"remove {sys.prefix} and run scripts/setup.sh" if _OURS else f"{RENEW}, use its .venv"


class Finding(NamedTuple):
    """A line of the report. It has a remedy where it reports something broken."""

    title: str
    text: str
    remedy: str | None = None
