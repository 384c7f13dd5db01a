"""Removes what a run that was killed left half written."""

import re
import shutil
from pathlib import Path

from trainer.checkpoints.manifest import ASIDE, BEST

# What `process.files` and `run_lock` write aside: a name of ours, and who wrote it.
_ASIDE_FILE = re.compile(
    r"\.(status\.json|metrics\.jsonl|model\.json|checkpoints\.json|checkpoint|run\.lock|writable)"
    r"\.(.*\.)?\d+"
)


def remove(logdir: str | None, *, rank: int) -> None:
    """Removes them from a folder that this run has locked; from rank 0 alone.

    Args:
      logdir: the folder; None: there is none.
      rank: of this worker.
    """
    if logdir is None or rank != 0:
        return
    for folder in (Path(logdir), Path(logdir) / BEST):
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
        if folder.is_dir():
            for path in folder.iterdir():
                if _ASIDE_FILE.fullmatch(path.name):
                    path.unlink(missing_ok=True)
