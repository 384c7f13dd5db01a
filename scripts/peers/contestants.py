"""The processes that compare_peers.py runs in turn, and the load by other programs meanwhile."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS = "slim-horovod"
_SCRIPTS = Path(__file__).resolve().parents[1]
_ROOT = _SCRIPTS.parent
_TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


class Contestant:
    """A process that prepares and runs steps on demand."""

    def __init__(self, python: str | Path, module: str, option: str, log: Path) -> None:
        self._log = log.open("a", encoding="utf-8")  # Of all cases.
        self._process = subprocess.Popen(
            [python, "-m", f"peers.{module}", option],
            cwd=_ROOT,
            # This checkout, wherever it is.
            env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{_SCRIPTS}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request of `protocol.py` and waits for its answer."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise ValueError("a contestant must have pipes")
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended, as the next line finds.
        line = process.stdout.readline()
        if not line:
            return {"error": f"ended with status {process.wait()}; see {self._log.name}"}
        return json.loads(line)

    def cpu_sec(self) -> float:
        """CPU time of the process so far; 0 where it has ended."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        except FileNotFoundError:
            return 0.0
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS_PER_SEC

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


class ForeignLoad:
    """The load of the machine by other programs, since this object was created."""

    def __init__(self, contestants: Iterable[Contestant]) -> None:
        self._contestants = list(contestants)
        self._began = time.monotonic()
        self._before_sec = self._foreign_sec()

    def _foreign_sec(self) -> float:
        """CPU time of everything but the contestants since the machine's start."""
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system = (int(field) for field in file.readline().split()[1:4])
        return (user + nice + system) / _TICKS_PER_SEC - sum(c.cpu_sec() for c in self._contestants)

    def cores(self) -> float:
        """The number of cores that other programs have used, on average."""
        return (self._foreign_sec() - self._before_sec) / (time.monotonic() - self._began)


def start(peers_python: Path, folder: Path, *, gpu: bool) -> dict[str, Contestant]:
    """Starts all contestants; returns them by their names in the table, ours first."""
    variants: list[tuple[str, str | Path, str, str]] = [
        (OURS, sys.executable, "ours", "plain"),
        ("Keras ResNet50V2", sys.executable, "keras_resnet", "plain"),
        ("Keras ResNet50V2, jit", sys.executable, "keras_resnet", "jit"),
        ("PyTorch", peers_python, "torch_resnet", "plain"),
        ("PyTorch, compiled", peers_python, "torch_resnet", "compile"),
    ]
    if gpu:  # On CPUs XLA is slower.
        variants.insert(1, (f"{OURS} --xla", sys.executable, "ours", "xla"))
    return {
        name: Contestant(python, module, option, folder / f"{module}_{option}.log")
        for name, python, module, option in variants
    }
