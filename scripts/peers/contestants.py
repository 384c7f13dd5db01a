"""The processes that compare_peers.py runs in turn."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = "slim-horovod"
_SCRIPTS = Path(__file__).resolve().parents[1]
_ROOT = _SCRIPTS.parent


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

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


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
