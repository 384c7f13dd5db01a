"""Tells a line of JSON about this host, and tries the connections of which it is then told.

usage: python -m trainer.modes.doctor.probe_host, which `hosts` starts on each host. It reads a line
of JSON {"hosts", "data_dir", "logdir", "token"}, answers, reads a line of {host: [address, port]},
and answers by {"time", "unreached"}. Nothing here loads TensorFlow.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.process import network, own_code

_SIZES = 1000  # Files of the data whose sizes are compared; more would take a file server minutes.
_CONNECT_SEC = 5.0


def find_code() -> str:
    """Returns a digest of all files of this program."""
    digest = hashlib.sha256()
    for package in own_code.PACKAGES:
        found = importlib.util.find_spec(package)
        folder = Path(found.origin).parent if found and found.origin else Path()
        for name, path in own_code.list_files(package, folder):
            digest.update(f"{name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def find_packages() -> dict[str, str]:
    """Returns the versions of Python and of all installed packages, by name."""
    found = {"python": platform.python_version()}
    for each in metadata.distributions():
        found[re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower()] = each.version
    return found


def describe_data(data_dir: str) -> str:
    """Returns how many files are below a folder, with a digest of their names and some sizes."""
    if "://" in data_dir:
        return "remote"  # Not walked: it is the same for all hosts, if they may read it.
    root = Path(data_dir)
    if not root.is_dir():
        return "missing"
    names = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, files in os.walk(root, followlinks=True)
        for name in files
        if not name.startswith(".")
    )
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    for name in names[:_SIZES]:
        with contextlib.suppress(OSError):
            digest.update(f"{(root / name).stat().st_size}\0".encode())
    return f"{len(names)} files ({digest.hexdigest()[:8]})"


def find_interfaces() -> dict[str, str]:
    """Returns the IPv4 address of each network interface that has one, but for the loopback's."""
    found = network.find_interfaces()
    return {name: address for name, address in found.items() if not address.startswith("127.")}


def resolve(name: str) -> str | None:
    """Returns the address of a host's name here; None: it has none."""
    try:
        return socket.gethostbyname(name)
    except (OSError, UnicodeError):
        return None


def count_gpus() -> int:
    """Returns how many GPUs NVIDIA's driver shows."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def find_facts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is so on this host."""
    logdir, data_dir = request["logdir"], request["data_dir"]
    return {
        "code": find_code(),
        "packages": find_packages(),
        "data": None if data_dir is None else describe_data(data_dir),
        "sees_logdir": logdir is None or Path(logdir, request["token"]).exists(),
        "addresses": {name: resolve(name) for name in (*request["hosts"], socket.gethostname())},
        "name": socket.gethostname(),
        "interfaces": find_interfaces(),
        "gpus": count_gpus(),
    }


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """Takes connections while it lasts; yields the port."""
    with socket.create_server(("", 0)) as server:
        threading.Thread(target=_accept, args=[server], daemon=True).start()
        yield server.getsockname()[1]


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # It has been closed.
        while True:
            server.accept()[0].close()


def find_unreached(places: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Returns the hosts to which no connection can be made, each with the reason."""
    unreached = {}

    def connect(host: str, address: str, port: int) -> None:
        try:
            socket.create_connection((address, port), timeout=_CONNECT_SEC).close()
        except OSError as error:
            unreached[host] = error.strerror or str(error)

    threads = [threading.Thread(target=connect, args=[h, *place]) for h, place in places.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return unreached


def main() -> None:
    """Answers the two questions."""
    facts = find_facts(json.loads(sys.stdin.readline()))
    with listening() as port:
        print(json.dumps({**facts, "port": port}), flush=True)
        line = sys.stdin.readline()
        now_sec = time.time()
        if line:
            answer = {"time": now_sec, "unreached": find_unreached(json.loads(line))}
            print(json.dumps(answer), flush=True)
            sys.stdin.readline()  # The others are still trying this host.


if __name__ == "__main__":
    main()
