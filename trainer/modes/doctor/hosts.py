"""--mode=doctor --hosts=h1,h2: looks at the hosts of a run to come, all at once, over ssh.

A host is asked what a worker on it would meet, by the same command that horovodrun would use: ssh
without a password, the same working folder, the same Python, PATH and PYTHONPATH.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from trainer.config import Config
from trainer.errors import ConfigError
from trainer.modes.doctor import probe_host
from trainer.modes.doctor.finding import Finding

# It asks for nothing, and gives up. A host's key that is new is taken; not one that has changed.
SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"),
    *("-o", "ConnectTimeout=10"),
)
_ANSWER_SEC = 40.0
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SKEW_SEC = 1.0
_CODE = "bring the same version of this folder there: a shared one, or the same commit"
_PASSED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class Slots(NamedTuple):
    """A host of --hosts, and how many workers it is to have."""

    host: str
    workers: int


def parse(text: str) -> tuple[Slots, ...]:
    """Returns the hosts that a value of --hosts names.

    Raises:
      ConfigError: it names none, one twice, or a number of workers that is none.
    """
    found = []
    for part in text.split(","):
        host, colon, number = part.strip().partition(":")
        is_number = re.fullmatch("[0-9]+", number) is not None and int(number) > 0
        if not _HOST.fullmatch(host) or (colon and not is_number):
            raise ConfigError(
                f"--hosts: must name hosts, each with its number of workers, such as h1:8,h2:8, "
                f"got {text!r}"
            )
        found.append(Slots(host, int(number) if colon else 1))
    names = [each.host for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--hosts: must name each host once, got {twice[0]} more often")
    return tuple(found)


class Probe:
    """A host that is being asked."""

    def __init__(self, host: str, *, is_here: bool) -> None:
        """Starts the program that answers."""
        run = (sys.executable, "-m", "trainer.modes.doctor.probe_host")
        command: Sequence[str] = run
        if not is_here:
            passed = [f"{name}={os.environ[name]}" for name in _PASSED if name in os.environ]
            there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(('env', *passed, *run))}"
            command = (*SSH, host, there)
        self.host = host
        if shutil.which(command[0]) is None:
            raise ConfigError(f"--hosts: needs {command[0]}, which is not installed")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Without a terminal, ssh can ask nobody.
        )
        self._questions = cast(IO[str], self._process.stdin)
        self._answers = cast(IO[str], self._process.stdout)
        self._timer = threading.Timer(_ANSWER_SEC, self._process.kill)
        self._timer.start()

    def ask(self, question: Any) -> dict[str, Any] | None:
        """Returns the answer to a question; None: there is none."""
        with contextlib.suppress(OSError):
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
        for line in self._answers:
            with contextlib.suppress(ValueError):  # A login script may say something, too.
                if isinstance(answer := json.loads(line), dict):
                    return answer
        return None

    def reason(self) -> str:
        """Returns why there is no answer: the last thing that was said."""
        is_late = not self._timer.is_alive()
        _, errors = self._process.communicate()
        lines = errors.strip().splitlines()
        if is_late and not lines:
            return f"no answer within {_ANSWER_SEC:g} s"
        return lines[-1].strip() if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        """Ends it."""
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()


def examine(config: Config) -> Iterator[Finding]:
    """Yields what is found on the hosts of --hosts.

    Raises:
      ConfigError: --hosts is none.
    """
    slots = parse(config.hosts.hosts or "")
    here = probe_host.find_interfaces().values()
    with contextlib.ExitStack() as stack:
        token = stack.enter_context(_token_in(config.run.logdir))
        names = [each.host for each in slots]
        request = {
            "hosts": names,
            "data_dir": None if config.data.data_dir is None else _absolute(config.data.data_dir),
            "logdir": None if config.run.logdir is None else _absolute(config.run.logdir),
            "token": token,
        }
        workers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(slots)))
        probes = []
        for name in names:
            address = probe_host.resolve(name)
            is_here = address is not None and (address in here or address.startswith("127."))
            probes.append(Probe(name, is_here=is_here))
            stack.callback(probes[-1].close)
        answers = list(workers.map(lambda probe: probe.ask(request), probes))
        yield from _judge_silence(probes, answers)
        facts = {p.host: answer for p, answer in zip(probes, answers, strict=True) if answer}
        yield from judge(facts, slots, config)
        interface = config.hosts.network_interface
        places = {
            host: (place_of(found, host, interface), found["port"]) for host, found in facts.items()
        }
        sent_sec = time.time()
        asked = [probe for probe in probes if probe.host in facts]

        def connect(probe: Probe) -> tuple[str, dict[str, Any] | None, float]:
            others = {host: place for host, place in places.items() if host != probe.host}
            return probe.host, probe.ask(others), time.time()

        for host, found, _ in workers.map(connect, asked):
            yield from judge_connections(host, found, sent_sec)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def place_of(facts: Mapping[str, Any], host: str, interface: str | None) -> str:
    """Returns the address at which the other workers will look for one on this host."""
    found = facts["interfaces"]
    if interface in found:
        return found[interface]
    address = facts["addresses"].get(host)
    return address if address in found.values() else next(iter(found.values()), "127.0.0.1")


@contextlib.contextmanager
def _token_in(logdir: str | None) -> Iterator[str]:
    """Puts a file into the log folder, which hosts that share it see; yields its name."""
    name = f".shared-{secrets.token_hex(8)}"
    path = Path(logdir or "", name)
    if logdir is not None:
        with contextlib.suppress(OSError):  # Training says it, if it can't be written.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            if logdir is not None:
                path.unlink()


def _judge_silence(
    probes: Sequence[Probe], answers: Sequence[dict[str, Any] | None]
) -> Iterator[Finding]:
    """Yields the hosts that do not answer."""
    for probe, answer in zip(probes, answers, strict=True):
        if answer is None:
            yield Finding(probe.host, f"does not answer ({probe.reason()})", _REMEDY_OF_SILENCE)


_REMEDY_OF_SILENCE = (
    "see that ssh reaches it with a key and without a password, and that this folder and Python "
    "are there by the same paths"
)


def judge(
    facts: Mapping[str, Mapping[str, Any]], slots: Sequence[Slots], config: Config
) -> Iterator[Finding]:
    """Yields what is wrong with hosts, or what they are, one host after the other.

    Args:
      facts: what `probe_host` has found out, by host; of hosts that answer.
      slots: all hosts, with their numbers of workers.
      config: flags of the run to come.
    """
    if not facts:
        return
    first_host, first = next(iter(facts.items()))
    common = set.intersection(*(set(each["interfaces"]) for each in facts.values()))
    has_gpus = any(each["gpus"] for each in facts.values())
    for host, workers in slots:
        if host not in facts:
            continue
        found = facts[host]
        yield Finding(host, _describe(found, facts))
        yield from _judge_program(host, found, first_host, first)
        if config.data.data_dir is not None:
            yield from _judge_data(host, found["data"], first_host, first["data"])
        if not found["sees_logdir"]:
            yield Finding(
                host,
                "does not share --logdir: only worker 0 writes and reads it, so that nothing is "
                f"lost, but whoever goes on with the run must start worker 0 on {first_host} again",
            )
        if has_gpus and found["gpus"] < workers:
            text = f"is to have {workers} workers, but has {found['gpus']} GPUs"
            yield Finding(host, text, "give it one worker per GPU")
        yield from _judge_interfaces(host, found, config.hosts.network_interface, common)


def _describe(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    addresses = ", ".join(f"{name} {address}" for name, address in found["interfaces"].items())
    unknown = [host for host in facts if found["addresses"].get(host) is None]
    text = f"answers as {found['name']}, {found['gpus']} GPUs, interfaces: {addresses or 'none'}"
    return text + (f"; has no address for {', '.join(unknown)}" if unknown else "")


def _judge_program(
    host: str, found: Mapping[str, Any], first_host: str, first: Mapping[str, Any]
) -> Iterator[Finding]:
    if found["code"] != first["code"]:
        text = (
            f"has another version of this program ({found['code']}, {first_host} {first['code']})"
        )
        yield Finding(host, text, _CODE)
    names = sorted({*found["packages"], *first["packages"]})
    differing = [
        f"{name} {found['packages'].get(name)}, not {first['packages'].get(name)}"
        for name in names
        if found["packages"].get(name) != first["packages"].get(name)
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        text = f"has other packages than {first_host}: {'; '.join(differing[:3])}{more}"
        yield Finding(host, text, "run scripts/setup.sh there")


def _judge_data(host: str, data: str, first_host: str, first: str) -> Iterator[Finding]:
    if data == "missing":
        yield Finding(host, "has no folder --data_dir", "put the data there, by the same path")
    elif data != first:
        text = f"has other data in --data_dir: {data}, {first_host} {first}"
        yield Finding(host, text, "give all hosts the same")


def _judge_interfaces(
    host: str, found: Mapping[str, Any], wanted: str | None, common: set[str]
) -> Iterator[Finding]:
    has = ", ".join(found["interfaces"]) or "none"
    if wanted is not None and wanted not in found["interfaces"]:
        text = f"has no interface {wanted} with an IPv4 address (it has {has})"
        yield Finding(host, text, "name one that all hosts have")
    elif wanted is None and not common:
        text = f"has no interface whose name all hosts have (it has {has})"
        yield Finding(host, text, "name interfaces alike: horovodrun goes by names")


def judge_connections(
    host: str, found: Mapping[str, Any] | None, sent_sec: float
) -> Iterator[Finding]:
    """Yields whether a host reaches the others, and whether its clock is right."""
    if found is None:
        yield Finding(host, "ended while it was asked", "try again")
        return
    for other, reason in found["unreached"].items():
        text = f"can't connect to {other}, on a port above 1023 ({reason})"
        yield Finding(host, text, "let no firewall stand between workers")
    skew_sec = found["time"] - sent_sec
    if abs(skew_sec) > _SKEW_SEC:
        text = f"has a clock that differs by {skew_sec:+.1f} s from this host's"
        yield Finding(host, text, "have all hosts set their clocks by NTP")
