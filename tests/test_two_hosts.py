"""Two hosts of namespaces, with a link that a process carries: for benchmark_link.py."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from shared import two_hosts

import pytest

from trainer.errors import UserError

# Sends what it gets, and says its own name.
SERVER = """
import socket, sys
listening = socket.create_server((sys.argv[1], 5000))
print(socket.gethostname(), flush=True)
connection, _ = listening.accept()
while part := connection.recv(2**16):
    connection.sendall(part)
"""
# Sends two megabytes, and says what came back.
CLIENT = """
import hashlib, socket, sys, threading
data = bytes(range(256)) * 8192
connection = socket.create_connection((sys.argv[1], 5000))
def send():
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
digest = hashlib.sha256()
while part := connection.recv(2**16):
    digest.update(part)
print(digest.hexdigest())
"""


def can_make_namespaces():
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None:
        return False
    name = f"slim-test-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="needs root, ip and /dev/net/tun")
def test_what_one_host_sends_reaches_the_other_and_both_are_gone_at_the_end():
    core = min(os.sched_getaffinity(0))
    with two_hosts.two_hosts(mbit_per_sec=200, delay_ms=1) as (first, second):
        command = first.command([sys.executable, "-c", SERVER, first.address], core)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout.readline() == "host-a\n"
                client = second.command([sys.executable, "-c", CLIENT, first.name], core)
                said = subprocess.run(
                    client, capture_output=True, text=True, timeout=60, check=True
                )
            finally:
                server.kill()
    assert said.stdout.strip() == hashlib.sha256(bytes(range(256)) * 8192).hexdigest()
    for host in (first, second):
        assert not Path("/run/netns", host.namespace).exists()
        assert not Path("/etc/netns", host.namespace).exists()


def test_without_root_it_is_one_line(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = pytest.raises(UserError, match=r"^network namespaces: must be possible here")
    with refused, two_hosts.two_hosts(mbit_per_sec=1, delay_ms=0):
        pass
