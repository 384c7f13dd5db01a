"""The transports over which NCCL moves data between workers, by its own log."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from trainer.process import settings

# "... NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM", with "[send]" or "[receive]" before
# "via" where it leaves the host; versions before 2.13 have no "/0".
_CHANNEL = re.compile(
    r"NCCL INFO Channel \d+(?:/\d+)? : \d+\[\w+\] -> \d+\[\w+\] (?:\[\w+\] )?via (\S+)"
)
# "... NCCL INFO  Pattern 4, crossNic 0, nChannels 16, bw 20.0/20.0, type NVL/PIX, sameChannels 1":
# the worst link between GPUs of a host.
_PATH = re.compile(r"NCCL INFO\s+Pattern \d+.*\btype (\w+)/")
_NVLINK = ("NVL", "NVB", "C2C")
_PCIE = ("PIX", "PXB", "P2C", "PXN", "PHB", "SYS")


def describe(log: str) -> str | None:
    """Returns what the channels of a log go over, such as "NVLink; InfiniBand or RoCE, GPUDirect".

    Args:
      log: text of NCCL's log at the level INFO, with its subsystems INIT and GRAPH.

    Returns:
      all ways, in the order in which the log has them; None where it has no channels.
    """
    paths = _PATH.findall(log)
    ways = (_name(way, paths[-1] if paths else "") for way in _CHANNEL.findall(log))
    return "; ".join(dict.fromkeys(ways)) or None


def _name(way: str, path: str) -> str:
    kind, _, rest = way.partition("/")
    if kind == "P2P":
        link = "NVLink" if path in _NVLINK else "PCIe" if path in _PCIE else "NVLink or PCIe"
        return f"{link}, from GPU to GPU"
    if kind == "SHM":
        return "shared memory of the host: the GPUs cannot reach each other"
    if kind != "NET":
        return way
    network, _, rest = rest.partition("/")
    name = {"Socket": "TCP"}.get(network, network)
    if network.startswith("IB"):
        name = "InfiniBand or RoCE"
        name += ", GPUDirect RDMA" if "GDRDMA" in rest else ", through host memory"
    return f"network: {name}"


def read_log(environ: Mapping[str, str] = os.environ) -> str:
    """Returns NCCL's log of this process, and removes it; empty where there is none of ours."""
    pattern = environ.get(settings.NCCL_LOG, "")
    if not pattern.endswith(settings.NCCL_LOG_ENDING):
        return ""  # The user's own.
    path = Path(pattern.replace("%p", str(os.getpid())))
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return ""
    return text
