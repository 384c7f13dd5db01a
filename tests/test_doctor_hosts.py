"""Findings of doctor about hosts, from what they answer; test_network_hosts.py asks real ones."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from processes import environment, run

from trainer.config import Config, DataConfig, HostsConfig
from trainer.errors import ConfigError
from trainer.modes.doctor import hosts, probe_host

CONFIG = Config(mode="doctor", data=DataConfig(data_dir="data"), hosts=HostsConfig(hosts="a,b"))
FACTS = {
    "code": "1111",
    "packages": {"python": "3.11.2", "tensorflow": "2.21.0", "numpy": "2.5.0"},
    "data": "2 files (abcd)",
    "sees_logdir": True,
    "addresses": {"a": "192.0.2.1", "b": "192.0.2.2"},
    "name": "a",
    "interfaces": {"eth0": "192.0.2.1"},
    "gpus": 0,
}


def judge(of_b, *, workers=1, **of_a):
    """Returns what is broken, by host."""
    facts = {"a": FACTS | of_a, "b": FACTS | of_b}
    slots = [hosts.Slots("a", 1), hosts.Slots("b", workers)]
    found = hosts.judge(facts, slots, CONFIG)
    return [(each.title, each.text) for each in found if each.remedy is not None]


@pytest.mark.parametrize(
    ("of_b", "text"),
    [
        ({"code": "2222"}, "has another version of this program (2222, a 1111)"),
        (
            {"packages": {"python": "3.11.2", "tensorflow": "2.20.0"}},
            "has other packages than a: numpy None, not 2.5.0; tensorflow 2.20.0, not 2.21.0",
        ),
        ({"data": "missing"}, "has no folder --data_dir"),
        (
            {"data": "1 files (dcba)"},
            "has other data in --data_dir: 1 files (dcba), a 2 files (abcd)",
        ),
    ],
)
def test_what_differs_from_the_first_host_is_named(of_b, text):
    assert judge(of_b) == [("b", text)]
    assert judge({}) == []


def test_a_host_without_enough_gpus_is_named_where_any_has_gpus():
    assert judge({"gpus": 2}, workers=2, gpus=1) == []
    told = judge({"gpus": 1}, workers=2, gpus=1)
    assert told == [("b", "is to have 2 workers, but has 1 GPUs")]
    assert judge({}, workers=2, gpus=1) == [("b", "is to have 2 workers, but has 0 GPUs")]
    assert judge({}, workers=2) == []


def test_interfaces_must_have_a_name_in_common():
    found = judge({"interfaces": {"eth1": "192.0.2.2"}})
    assert found == [
        ("a", "has no interface whose name all hosts have (it has eth0)"),
        ("b", "has no interface whose name all hosts have (it has eth1)"),
    ]


def test_data_of_a_server_are_not_looked_for_on_the_hosts(tmp_path):
    assert probe_host.describe_data("gs://bucket/images") == "remote"
    assert probe_host.describe_data(str(tmp_path / "none")) == "missing"


def test_a_wrong_clock_and_a_closed_port_are_named():
    answer = {"time": 1003.5, "unreached": {"b": "Connection refused"}}
    port, clock = hosts.judge_connections("a", answer, 1000.0)
    assert port.text == "can't connect to b, on a port above 1023 (Connection refused)"
    assert clock.text == "has a clock that differs by +3.5 s from this host's"
    assert list(hosts.judge_connections("a", {"time": 1000.4, "unreached": {}}, 1000.0)) == []


def test_a_host_tells_what_it_cannot_connect_to():
    """The program that is started on each host, by itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        open_port = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            closed_port = other.getsockname()[1]
        request = {"hosts": ["localhost"], "data_dir": None, "logdir": None, "token": ""}
        places = {"open": ["127.0.0.1", open_port], "closed": ["127.0.0.1", closed_port]}
        done = subprocess.run(
            [sys.executable, "-m", "trainer.modes.doctor.probe_host"],
            input=f"{json.dumps(request)}\n{json.dumps(places)}\n",
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
    facts, answer = map(json.loads, done.stdout.splitlines())
    assert facts["addresses"]["localhost"] == "127.0.0.1"
    assert facts["name"] == os.uname().nodename
    assert list(answer["unreached"]) == ["closed"]
    assert abs(answer["time"] - time.time()) < 60


@pytest.mark.parametrize(
    "text", ["a,,b", "a:0", "a:x", "a:٣", "a b:1", "-oProxyCommand=x", "a:1:2", "a,a"]
)
def test_a_wrong_list_of_hosts_is_refused(text):
    with pytest.raises(ConfigError, match="--hosts: must name"):
        hosts.parse(text)


def test_without_ssh_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--hosts: needs ssh, which is not installed"):
        hosts.Probe("a", is_here=False)


def test_a_list_of_hosts_has_workers():
    assert hosts.parse("a:8, b.example") == (("a", 8), ("b.example", 1))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-H", "a:0", "--steps=1"], "-H must be hosts with numbers of workers, such as"),
        (["-H", "-oProxyCommand=x", "--steps=1"], "-H must be hosts with numbers of workers"),
        (["-H", "a:1"], "-H must be followed by the flags of a training"),
        (["--network-interface", "eth0", "--steps=1"], "--network-interface must be given with"),
        (["-np", "0"], "-np must be a whole number of workers, got '0'"),
    ],
)
def test_the_script_refuses_before_it_sets_anything_up(flags, told):
    done = run(["scripts/train.sh", *flags])
    assert done.returncode == 1
    assert done.stderr.startswith(f"train.sh: {told}")
    assert done.stderr.count("\n") == 1


def test_what_a_login_script_says_is_no_answer(monkeypatch):
    said = """import sys; sys.stdin.readline(); print("{welcome}", 7, '{"a": 1}', sep="\\n")"""
    popen = subprocess.Popen
    monkeypatch.setattr(
        hosts.subprocess, "Popen", lambda _, **how: popen([sys.executable, "-c", said], **how)
    )
    probe = hosts.Probe("host", is_here=True)
    try:
        assert probe.ask({}) == {"a": 1}
    finally:
        probe.close()
