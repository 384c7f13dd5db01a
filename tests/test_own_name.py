"""The name of a worker's host: without an address, Gloo would end the process without a word."""

import shlex
import socket

import pytest
import tiny
from processes import environment, run

from trainer.errors import ConfigError
from trainer.process import launcher

WORKER = {
    "HOROVOD_RANK": "1",
    "HOROVOD_SIZE": "2",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no-such-host.invalid", "which it has not"),
        ("192.0.2.1", r"of which none is this host's \(192.0.2.1\)"),  # Reserved for documents.
        ("a" * 70, "which it has not"),
    ],
)
def test_a_name_that_leads_elsewhere_or_nowhere_is_told(monkeypatch, name, reason):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with pytest.raises(ConfigError, match=f"this host's name .{name}.: must have .*{reason}"):
        launcher.check(WORKER)


def test_other_launchers_and_single_workers_need_none(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    launcher.check({})
    launcher.check({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"})
    launcher.check({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.processes
def test_workers_whose_interface_is_named_need_none():
    """horovodrun names it, and Gloo then listens at its address (scripts/horovod/patches)."""
    command = ["horovodrun", "-np", "2", "python", "-m", "trainer", *tiny.FLAGS, "--steps=1"]
    inside = f"hostname no-such-host.invalid && exec {shlex.join(command)}"
    if run(["unshare", "--uts", "hostname", "other"]).returncode != 0:
        pytest.skip("a host name of its own needs root")
    done = run(["unshare", "--uts", "sh", "-c", inside], env=environment())
    assert done.returncode == 0, done.stderr
    assert "worker 1 of 2 (no-such-host.invalid, local rank 1)" in done.stdout


def test_an_interface_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    launcher.check({**WORKER, "HOROVOD_GLOO_IFACE": "lo"})
    told = "host no-such-host.invalid: must have the network interface 'eth77', .*, got .*lo"
    with pytest.raises(ConfigError, match=told):
        launcher.check({**WORKER, "HOROVOD_GLOO_IFACE": "eth77"})
