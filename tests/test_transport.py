"""Transports by NCCL's log; lines have the form of these versions' own.

2.19 and later: NVIDIA/nccl issues 1189, 1357 and 1713; 2.12: issue 707; the names of transports and
paths: src/transport/*.cc and src/graph/topo.cc of NCCL 2.28.
"""

import os
import pathlib
import re

import pytest

from trainer.benchmark import transport
from trainer.config import BenchmarkConfig, Config
from trainer.process import settings

GRAPH = (
    "host:11:22 [0] NCCL INFO  Pattern 4, crossNic 0, nChannels 16, bw 20.000000/20.000000, "
    "type {}/PIX, sameChannels 1\n"
)
CHANNEL = "host:11:22 [0] NCCL INFO Channel 0{}/0 : 0[0] -> 1[1] via {}\n"
TO_HOST = "host:11:22 [0] NCCL INFO Channel 0{}/0 : 0[0] -> 8[0] [send] via {}\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", None),
        ("host:11:22 [0] NCCL INFO NCCL_IB_GID_INDEX set by environment to 3.\n", None),
        (GRAPH.format("NVL") + CHANNEL.format(0, "P2P/CUMEM"), "NVLink, from GPU to GPU"),
        (GRAPH.format("PHB") + CHANNEL.format(0, "P2P/IPC"), "PCIe, from GPU to GPU"),
        (CHANNEL.format(0, "P2P/CUMEM/read"), "NVLink or PCIe, from GPU to GPU"),
        (
            CHANNEL.format(0, "SHM/direct/direct"),
            "shared memory of the host: the GPUs cannot reach each other",
        ),
        (
            GRAPH.format("NVL")
            + CHANNEL.format(0, "P2P/CUMEM")
            + CHANNEL.format(1, "P2P/CUMEM")
            + TO_HOST.format(0, "NET/IB/3/GDRDMA")
            + TO_HOST.format(1, "NET/IBext_v8/3/GDRDMA/Shared"),
            "NVLink, from GPU to GPU; network: InfiniBand or RoCE, GPUDirect RDMA",
        ),
        (TO_HOST.format(0, "NET/IB/4"), "network: InfiniBand or RoCE, through host memory"),
        (TO_HOST.format(0, "NET/Socket/0"), "network: TCP"),
        (
            "10-0-0-1:12:15 [1] NCCL INFO Channel 01 : 2[c7000] -> 0[87000] [receive] via "
            "NET/IB/5/GDRDMA\n",
            "network: InfiniBand or RoCE, GPUDirect RDMA",
        ),
    ],
)
def test_what_data_goes_over_is_told(log, expected):
    assert transport.describe(log) == expected


def environ_of(*, has_gpu=True, passes="allreduce", mode="benchmark", **given):
    config = Config(mode=mode, benchmark=BenchmarkConfig(benchmark_passes=passes))
    settings.apply(settings.Moment.HOROVOD, config, has_gpu=has_gpu, environ=given)
    return {name: value for name, value in given.items() if name.startswith("NCCL")}


def test_the_log_is_asked_for_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(settings.tempfile, "gettempdir", lambda: str(tmp_path))
    environ = environ_of()
    assert (environ["NCCL_DEBUG"], environ["NCCL_DEBUG_SUBSYS"]) == ("INFO", "INIT,GRAPH")
    pattern = environ["NCCL_DEBUG_FILE"]
    assert re.fullmatch(rf"{tmp_path}/%p\.[0-9a-f]{{8}}\.slim-horovod-nccl\.log", pattern)
    path = pathlib.Path(pattern.replace("%p", str(os.getpid())))
    path.write_text("log")
    assert transport.read_log(environ) == "log"
    assert not path.exists()
    assert transport.read_log(environ) == ""
    for other in ({"has_gpu": False}, {"passes": "forward"}, {"mode": "train"}):
        assert environ_of(**other) == {}


def test_the_users_own_log_stays(tmp_path):
    path = tmp_path / "nccl.log"
    path.write_text("log")
    given = {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": str(path)}
    assert environ_of(**given) == given
    assert transport.read_log(given) == ""
    assert path.read_text() == "log"
