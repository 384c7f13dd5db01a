"""Training, and doctor, over three hosts with names, addresses and sshd of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import network_hosts
import numpy as np
import pytest
import tensorflow as tf
import tiny
from processes import ROOT, environment

pytestmark = pytest.mark.processes

STEPS = 60
WORKER = ["python", "-m", "trainer", *tiny.FLAGS, f"--steps={STEPS}", "--deterministic"]
WORKER += ["--eval_every_epochs=0", "--checkpoint_every=10", "--batch_norm_decay=0.8"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with network_hosts.network(tmp_path_factory.mktemp("network"), 3) as made:
        yield made


def horovodrun(hosts, logdir, *, interface="eth1"):
    launcher = ["horovodrun", "-np", "3", "-H", hosts, "--network-interface", interface]
    return [*launcher, *WORKER, f"--logdir={logdir}"]


def weights(logdir):
    reader = tf.train.load_checkpoint(str(logdir / f"model.ckpt-{STEPS}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def are_equal(one, other):
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.fixture(scope="module")
def trained(network, tmp_path_factory):
    """The results of a run on three hosts: its end, the bytes that it sent, and its weights."""
    first, _, third = network.hosts
    logdir = tmp_path_factory.mktemp("shared") / "run"
    logdir.mkdir()
    third.do(f"mount -t tmpfs none {logdir}")
    before = [{i: host.sent_bytes(i) for i in ("eth0", "eth1")} for host in network.hosts]
    done = first.run(horovodrun("h1:1,h2:1,h3:1", logdir))
    assert done.returncode == 0, done.stdout + done.stderr
    sent = [
        {name: host.sent_bytes(name) - count for name, count in counts.items()}
        for host, counts in zip(network.hosts, before, strict=True)
    ]
    return done, sent, weights(logdir)


def test_the_hosts_are_told_and_what_they_do_not_share(trained):
    done, _, _ = trained
    for rank in range(3):
        assert f"worker {rank} of 3 (h{rank + 1}, local rank 0)" in done.stdout
    assert (
        "is not shared: h3 do not see what worker 0 writes there on h1. Only worker" in done.stdout
    )
    parameters = sum(
        value.size
        for name, value in trained[2].items()
        if name.endswith(("weights", "biases", "gamma", "beta"))
    )
    assert f"averaging the {4 * parameters / 1e6:.3g} MB of gradients alone takes " in done.stdout
    assert "ms/step; averaging alone took " in done.stdout


def test_what_workers_send_goes_over_the_interface_that_is_named(trained):
    """Over the other, to which the hosts' names lead, goes what ssh carries: workers' lines."""
    done, sent, found = trained
    in_a_ring = 2 * 2 / 3 * STEPS * sum(value.nbytes for value in found.values()) / 2
    for counts in sent:
        assert counts["eth1"] > in_a_ring
    assert all(counts["eth0"] < 30_000 + 2 * len(done.stdout) for counts in sent[1:]), sent


class CutOff(NamedTuple):
    """The outcome of a supervised run of which a host was cut off, and of what ran meanwhile."""

    logdir: Path
    told: str
    doctor: subprocess.CompletedProcess
    script: subprocess.CompletedProcess
    logdir_of_script: Path


@pytest.fixture(scope="module")
def cut_off(network, tmp_path_factory):
    """Pulls h3's cables after 10 steps and plugs them in when the run has ended; see CutOff.

    While its workers wait in vain, doctor looks at the hosts, and scripts/train.sh trains on two.
    """
    first, _, third = network.hosts
    folder = tmp_path_factory.mktemp("cut-off")
    supervise = [sys.executable, str(ROOT / "scripts" / "supervise.py"), "--first_pause_sec=1"]
    script = ["scripts/train.sh", "-H", "h1:2,h2:1", "--network-interface", "eth1", *WORKER[3:]]
    with open(folder / "told", "w") as told:
        command = [*supervise, "--", *horovodrun("h1:1,h2:1,h3:1", folder / "run")]
        process = first.start(command, stdout=told, stderr=told)
        try:
            wait_for((folder / "run" / "model.ckpt-10.index").exists)
            network.pull(third)
            doctor = first.run([*WORKER[:3], "--mode=doctor", "-H", "h1,h2,h3"])
            trained = first.run([*script, f"--logdir={folder}/mixed"], SLIM_HOROVOD_VENV=sys.prefix)
            wait_for(lambda: "again in" in (folder / "run" / "supervise.log").read_text())
            network.pull(third, plug_in=True)
            assert process.wait(timeout=120) == 0
        finally:
            end(process)
    told = (folder / "told").read_text()
    return CutOff(folder / "run", told, doctor, trained, folder / "mixed")


def test_a_host_cut_off_is_named_and_the_run_goes_on_when_it_is_back(cut_off, trained):
    """Its last start has the weights of the run that nothing has disturbed."""
    assert "server h3 not responding" in cut_off.told
    assert are_equal(weights(cut_off.logdir), trained[2])


def test_doctor_names_the_host_that_does_not_answer(cut_off):
    assert cut_off.doctor.returncode == 1
    (line,) = (line for line in cut_off.doctor.stdout.splitlines() if "BROKEN" in line)
    assert line.startswith("h3            BROKEN: does not answer (ssh: connect to host h3 port 22")


def test_the_script_trains_on_hosts_and_the_weights_are_the_same(cut_off, trained):
    """Three workers, two of them on one host; the order of sums is another one."""
    done = cut_off.script
    assert done.returncode == 0, done.stdout + done.stderr
    assert "h2            answers as h2, 0 GPUs" in done.stdout
    assert "worker 1 of 3 (h1, local rank 1)" in done.stdout
    assert "worker 2 of 3 (h2, local rank 0)" in done.stdout
    found = weights(cut_off.logdir_of_script)
    for name, value in trained[2].items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_doctor_tells_of_hosts_that_differ(network, tmp_path):
    first, second, third = network.hosts
    for folder in ("data", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "image.png").touch()
    second.do(f"mount -t tmpfs none {tmp_path}/data")
    third.do(f"mount --bind /dev/null {ROOT}/trainer/plan.py")
    try:
        with network.asking_for_passwords(second):
            flags = ["--mode=doctor", "-H", "h1:1,h2:1,h3:1,h4.invalid:1"]
            bad = first.run([*WORKER[:3], *flags, "--network_interface=eth7"])
        flags = ["--mode=doctor", "-H", "h1,h2,h3", f"--data_dir={tmp_path}/data"]
        differing = first.run([*WORKER[:3], *flags, f"--logdir={tmp_path}/run"])
    finally:
        third.do(f"umount {ROOT}/trainer/plan.py")
    lines = bad.stdout.splitlines()
    assert bad.returncode == differing.returncode == 1
    assert [line for line in lines if line.startswith("h2 ") and "Permission denied" in line]
    assert [line for line in lines if line.startswith("h4.invalid") and "resolve" in line]
    for host in ("h1", "h3"):
        told = "BROKEN: has no interface eth7 with an IPv4 address (it has eth0, eth1)"
        assert [line for line in lines if line.startswith(f"{host} ") and told in line]
    lines = differing.stdout.splitlines()
    told = "BROKEN: has other data in --data_dir: 0 files"
    assert [line for line in lines if line.startswith("h2 ") and told in line]
    told = "BROKEN: has another version of this program"
    assert [line for line in lines if line.startswith("h3 ") and told in line]
    assert not [line for line in lines if "BROKEN" in line and line.startswith("h1 ")]
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("hosts", "interface", "told"),
    [
        ("h1:1,h4.invalid:2", "eth1", "horovodrun: host h4.invalid: cannot be reached by ssh"),
        ("h1:1,h2:2", "eth7", "horovodrun: --network-interface: must be one that this host has"),
    ],
)
def test_horovodrun_refuses_in_a_line(network, tmp_path, hosts, interface, told):
    done = network.hosts[0].run(horovodrun(hosts, tmp_path / "run", interface=interface))
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line] == [done.stderr.strip()]
    assert done.stderr.startswith(told)


def test_hosts_end_with_the_process_that_made_them(tmp_path):
    if reason := network_hosts.reason_for_none():
        pytest.skip(reason)
    code = """if True:
        import pathlib, sys, time, network_hosts
        with network_hosts.network(pathlib.Path(sys.argv[1]), 1) as made:
            print(made.hosts[0].pid, flush=True)
            time.sleep(1000)
    """
    maker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    pid = int(maker.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    maker.kill()
    maker.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def wait_for(condition):
    end_sec = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end_sec
        time.sleep(0.01)


def end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
