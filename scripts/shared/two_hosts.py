"""Two hosts on this machine, as network namespaces, with a slow link. For benchmark_link.py.

The kernel's netem is not everywhere, so that a process carries the packets: from a TUN device in
one namespace to that in the other, after the time that they would have taken.
"""

import collections
import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.errors import UserError

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_DEVICE = "link"
# Few large packets: the process that carries them shall not take the workers' cores.
_MTU = 60_000
_MOST_WAITING_BYTES = 64 * 2**20  # TCP sends less than that before it waits for an answer.
_TOOLS = ("ip", "unshare", "taskset")


class Host(NamedTuple):
    """A host.

    Attributes:
      namespace: name of its network namespace.
      name: its own name, which has an address there.
      address: that address.
    """

    namespace: str
    name: str
    address: str

    def command(self, command: Sequence[str], core: int) -> list[str]:
        """Returns the command that runs another one on this host, on one core."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, "taskset", "-c", str(core), *command]


@contextlib.contextmanager
def two_hosts(*, mbit_per_sec: float, delay_ms: float) -> Iterator[tuple[Host, Host]]:
    """Yields two hosts, and removes them at the end.

    Args:
      mbit_per_sec: rate of the link between them, each way.
      delay_ms: time that a packet takes beside that, each way.

    Raises:
      UserError: there can be no namespaces here.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing or not os.path.exists("/dev/net/tun"):
        reason = f"{missing[0]} is missing" if missing else "no root, or no /dev/net/tun"
        raise UserError(f"network namespaces: must be possible here, and are not ({reason})")
    hosts = tuple(
        Host(f"slim-{os.getpid()}-{side}", f"host-{side}", f"10.77.0.{number}")
        for number, side in ((1, "a"), (2, "b"))
    )
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(_namespace(host, hosts)) for host in hosts]
        for pair in (ends, ends[::-1]):
            carrier = multiprocessing.get_context("fork").Process(
                target=_carry, args=(*pair, mbit_per_sec * 1e6 / 8, delay_ms / 1000), daemon=True
            )
            carrier.start()
            stack.callback(carrier.kill)
        yield hosts[0], hosts[1]


@contextlib.contextmanager
def _namespace(host: Host, hosts: Sequence[Host]) -> Iterator[int]:
    """Makes a namespace with a TUN device; yields the device's other end."""
    _run("ip", "netns", "add", host.namespace)
    names = Path("/etc/netns") / host.namespace
    device = None
    try:
        names.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in hosts)]
        (names / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        device = os.open("/dev/net/tun", os.O_RDWR)
        temporary = host.namespace[-15:]
        flags = _IFF_TUN | _IFF_NO_PI
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", temporary.encode(), flags))
        _run("ip", "link", "set", temporary, "netns", host.namespace, "name", _DEVICE)
        within = ("ip", "-n", host.namespace)
        _run(*within, "address", "add", f"{host.address}/24", "dev", _DEVICE)
        _run(*within, "link", "set", "dev", _DEVICE, "mtu", str(_MTU), "up")
        _run(*within, "link", "set", "lo", "up")
        yield device
    finally:
        if device is not None:
            os.close(device)
        subprocess.run(["ip", "netns", "delete", host.namespace], check=False)
        shutil.rmtree(names, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _carry(source: int, target: int, bytes_per_sec: float, delay_sec: float) -> None:
    """Carries packets from one device to another for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who has started it ends it.
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    came = threading.Semaphore(0)
    held = [0]

    def write() -> None:
        while True:
            came.acquire()
            due, packet = waiting.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            held[0] -= len(packet)
            with contextlib.suppress(OSError):  # The device is not up yet.
                os.write(target, packet)

    threading.Thread(target=write, daemon=True).start()
    free = 0.0  # When the link has sent all that came before.
    while True:
        packet = os.read(source, _MTU + 100)
        if held[0] + len(packet) > _MOST_WAITING_BYTES:
            continue
        free = max(free, time.monotonic()) + len(packet) / bytes_per_sec
        held[0] += len(packet)
        waiting.append((free + delay_sec, packet))
        came.release()


@contextlib.contextmanager
def rendezvous(hosts: Sequence[Host]) -> Iterator[list[dict[str, str]]]:
    """Starts Horovod's meeting point on the first host; yields each worker's variables.

    horovodrun would need an ssh server on the hosts.
    """
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    ports: list[int] = []

    def start() -> None:
        namespace = os.open(f"/run/netns/{hosts[0].namespace}", os.O_RDONLY)
        # Of this thread alone, and of those that it starts.
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) == 0:
            ports.append(server.start())

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    if not ports:
        raise UserError(f"network namespaces: {hosts[0].namespace} cannot be entered")
    slots = get_host_assignments([HostInfo(host.name, 1) for host in hosts], len(hosts))
    server.init(slots)
    common = create_run_env_vars(hosts[0].address, [_DEVICE], ports[0])
    try:
        yield [
            {name: str(value) for name, value in (common | create_slot_env_vars(slot)).items()}
            for slot in slots
        ]
    finally:
        server.stop()


def run_workers(
    hosts: Sequence[Host], arguments: Sequence[str], *, variables: Mapping[str, str], log: Path
) -> None:
    """Runs Python with some arguments as a worker on each host, and waits for all.

    Args:
      hosts: the hosts; worker k has core k of those of this process.
      arguments: those of Python.
      variables: further environment variables.
      log: file for what the workers say.

    Raises:
      UserError: one failed; the others are ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    with rendezvous(hosts) as of_workers, log.open("w", encoding="utf-8") as said:
        running = [
            subprocess.Popen(
                host.command([sys.executable, *arguments], cores[number % len(cores)]),
                env={**os.environ, **own, **variables},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            for number, (host, own) in enumerate(zip(hosts, of_workers, strict=True))
        ]
        try:
            while any(each.poll() is None for each in running):
                if any(each.poll() for each in running):
                    break
                time.sleep(0.1)
            statuses = [each.poll() or 0 for each in running]
        finally:
            for each in running:
                # Also the worker itself, of which this is the parent: see trainer.process.keeper.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
                each.wait()
    check_ended(statuses, log)


def check_ended(statuses: Sequence[int], log: Path) -> None:
    """Raises UserError with the last lines of a log where one of some processes has failed."""
    failed = [status for status in statuses if status]
    if failed:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise UserError(f"a worker ended with status {failed[0]}:\n" + "\n".join(lines[-20:]))
