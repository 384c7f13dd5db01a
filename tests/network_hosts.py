"""Several hosts on one machine: namespaces joined by cables, each with a name, addresses and sshd.

A host is a process in namespaces of its own (network, host name, mounts, processes), and everything
below it. Nothing of it has a name outside: when the process ends, which it does with its test at
the latest, killed or not, the kernel ends what runs there and removes links and mounts.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import ROOT, environment

_PROGRAM = ROOT / "tests" / "programs" / "network_host.py"
_DEBIAN = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
_DEBIAN |= {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "sshd": "openssh-server"}
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")

_SSHD = """\
HostKey {folder}/ssh_host_key
AuthorizedKeysFile {keys}
PidFile none
UsePAM no
PermitRootLogin yes
StrictModes no
PasswordAuthentication {passwords}
"""
_SSH = """\
Host *
IdentityFile {folder}/key
UserKnownHostsFile {folder}/known_hosts
"""


def reason_for_none() -> str | None:
    """Returns why there can be no hosts here; None: there can."""
    if os.geteuid() != 0:
        return "namespaces with addresses of their own need root"
    for program, package in _DEBIAN.items():
        if shutil.which(program, path=_PATH) is None:
            return f"needs {program} (Debian: apt-get install {package})"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "ip", "link", "add", "br0", "type", "bridge"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": _PATH},
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One of the hosts; also the switch that they hang on."""

    def __init__(self, name: str, folder: Path) -> None:
        """Starts it, without links."""
        self.name = name
        self._folder = folder
        unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        self._process = subprocess.Popen(
            [*unshare, sys.executable, str(_PROGRAM), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": _PATH},
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (it takes no lock that another thread has)
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.pid = int(children.read_text())

    def start_sshd(self) -> None:
        """Starts sshd, which listens on all of the host's addresses."""
        assert self._process.stdin is not None
        sshd = shutil.which("sshd", path=_PATH)
        log = self._folder / "sshd.log"
        self._process.stdin.write(f"{sshd} -D -E {log}\n")
        self._process.stdin.flush()
        for _ in range(100):
            if log.exists() and "listening on 0.0.0.0" in log.read_text():
                return
            signal.sigtimedwait([], 0.05)
        raise AssertionError(log.read_text() if log.exists() else "sshd has not begun")

    def start(self, command: Sequence[str], **options) -> "subprocess.Popen[str]":
        """Starts a command on this host, as the leader of a process group."""
        extra = options.pop("extra", {})
        enter = ["nsenter", f"--target={self.pid}", *_NAMESPACES, f"--wdns={ROOT}"]
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        env = environment(HOME=str(home), **extra)
        env["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
        return subprocess.Popen(
            [*enter, *command],
            text=True,
            env=env,
            start_new_session=True,
            **options,
        )

    def run(
        self, command: Sequence[str], *, timeout_sec: float = 120, **extra: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command on this host, and returns what came of it."""
        process = self.start(command, extra=extra)
        try:
            output, errors = process.communicate(timeout=timeout_sec)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            print(*process.communicate(), sep="\n")
            raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def do(self, command: str) -> str:
        """Runs a command that must succeed; returns what it prints."""
        done = self.run(command.split())
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def sent_bytes(self, interface: str) -> int:
        """Returns how many bytes have left this host by an interface."""
        told = json.loads(self.do(f"ip -json -statistics link show dev {interface}"))
        return told[0]["stats64"]["tx"]["bytes"]

    def close(self) -> None:
        """Ends the host and all that runs there."""
        self._process.kill()
        self._process.communicate()


class Network:
    """Hosts h1, h2, ... with the addresses 10.77.0.1, ... on eth0, and 10.78.0.1, ... on eth1."""

    def __init__(self, folder: Path, number: int, stack: contextlib.ExitStack) -> None:
        names = [f"h{position}" for position in range(1, number + 1)]
        addresses = "".join(f"10.77.0.{i} {name}\n" for i, name in enumerate(names, 1))
        _make_keys(folder)
        self.hosts = [self._make_host(folder, name, addresses, stack) for name in names]
        (folder / "switch").mkdir()
        self._switch = Host("switch", folder / "switch")
        stack.callback(self._switch.close)
        for link in range(2):
            self._switch.do(f"ip link add br{link} type bridge forward_delay 0")
            self._switch.do(f"ip link set br{link} up")
            for position, host in enumerate(self.hosts, 1):
                self._join(host, link, f"10.{77 + link}.0.{position}/24")
        for host in self.hosts:
            host.start_sshd()

    def _make_host(
        self, folder: Path, name: str, addresses: str, stack: contextlib.ExitStack
    ) -> Host:
        own = folder / name
        (own / "ssh").mkdir(parents=True)
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}")
        (own / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        (own / "ssh" / "ssh_config").write_text(_SSH.format(folder=folder))
        self._folder = folder
        self._configure_sshd(own)
        host = Host(name, own)
        stack.callback(host.close)
        return host

    def _configure_sshd(self, own: Path, *, takes_key: bool = True) -> None:
        keys = self._folder / "key.pub" if takes_key else "none"
        passwords = "no" if takes_key else "yes"
        text = _SSHD.format(folder=self._folder, keys=keys, passwords=passwords)
        (own / "ssh" / "sshd_config").write_text(text)

    def _join(self, host: Host, link: int, address: str) -> None:
        cable = f"ip link add {host.name}-{link} type veth peer name eth{link} netns {host.pid}"
        _outside_of(self._switch, cable)
        self._switch.do(f"ip link set {host.name}-{link} master br{link} up")
        host.do(f"ip address add {address} dev eth{link}")
        host.do(f"ip link set eth{link} up")

    def pull(self, host: Host, *, plug_in: bool = False) -> None:
        """Pulls all cables of a host out of the switch, or plugs them in again."""
        for link in range(2):
            self._switch.do(f"ip link set {host.name}-{link} {'up' if plug_in else 'down'}")

    @contextlib.contextmanager
    def asking_for_passwords(self, host: Host) -> Iterator[None]:
        """Makes a host's sshd take no key, but a password, which nobody knows."""
        own = self._folder / host.name
        self._configure_sshd(own, takes_key=False)
        host.do("pkill -HUP -o sshd")
        try:
            yield
        finally:
            self._configure_sshd(own)
            host.do("pkill -HUP -o sshd")


def _outside_of(host: Host, command: str) -> None:
    """Runs a command in a host's network alone: it names processes by the numbers out here."""
    enter = ["nsenter", f"--target={host.pid}", "--net"]
    env = {**os.environ, "PATH": _PATH}
    subprocess.run([*enter, *command.split()], env=env, check=True)


def _make_keys(folder: Path) -> None:
    for name in ("key", "ssh_host_key"):
        new = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(new, check=True)
    public = (folder / "ssh_host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"* {public}")


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextlib.contextmanager
def network(folder: Path, number: int) -> Iterator[Network]:
    """Makes hosts that are there until the end; skips the test where that cannot be."""
    if reason := reason_for_none():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield Network(folder, number, stack)
