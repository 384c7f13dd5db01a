"""Finds out whether two workers under horovodrun average a number right."""

import json
import sys
import tempfile
import time
from pathlib import Path

from trainer.modes.doctor.children import how_ended, run_python
from trainer.modes.doctor.finding import AFRESH, Finding

_WORKER = ("-m", "trainer.modes.doctor.probe_allreduce")


def check_allreduce() -> Finding:
    """Returns whether two workers under horovodrun average their ranks right, as a finding."""
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.exists():
        return Finding("all-reduce", f"there is no {launcher}", AFRESH)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ended = run_python(*_WORKER, folder, launcher=(str(launcher), "-np", "2"))
        paths = Path(folder).iterdir() if ended.status == 0 else ()
        found = [json.loads(path.read_text()) for path in paths]
    if len(found) == 2 and all((each["mean"], each["size"]) == (0.5, 2) for each in found):
        seconds = time.monotonic() - start
        return Finding("all-reduce", f"2 workers, on {found[0]['on']}, right, in {seconds:.0f} s")
    reason = f"of 2 workers under horovodrun failed ({how_ended(ended)})"
    return Finding(
        "all-reduce",
        reason,
        "see that this host's name resolves and no firewall stands between",
    )
