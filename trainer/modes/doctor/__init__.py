"""--mode=doctor: reports what is installed, what it was built with, and whether it works.

setup.sh ends with this report. Everything that a broken installation can bring down runs in
processes of its own: a crash while a library is loaded is then a finding. The all-reduce is started
by `horovodrun` itself. Starting the workers directly would be a second faster, but would leave out
launcher and rendezvous, where many faults of a new machine show. With --hosts it looks at these
instead.
"""

import json
import sys
from collections.abc import Iterator

from trainer.config import Config
from trainer.modes.doctor import hosts
from trainer.modes.doctor.allreduce import check_allreduce
from trainer.modes.doctor.children import how_ended, run_python
from trainer.modes.doctor.cuda import check_cuda
from trainer.modes.doctor.finding import AFRESH, Finding
from trainer.modes.doctor.libraries import check_devices, check_horovod, check_slim
from trainer.modes.doctor.packages import check_packages

_PROBE = ("-m", "trainer.modes.doctor.probe_libraries")
_CHECKS = {
    "tensorflow": check_devices,
    "slim": check_slim,
    "horovod": check_horovod,
    "cuda": check_cuda,
}


def run(config: Config | None = None) -> int:
    """Prints the report; returns the exit status: 1 where something is broken."""
    broken = False
    of_hosts = config is not None and config.hosts.hosts is not None and hosts.examine(config)
    for finding in of_hosts or examine():
        if finding.remedy is None:
            print(f"{finding.title:<13} {finding.text}", flush=True)
        else:
            broken = True
            print(
                f"{finding.title:<13} BROKEN: {finding.text}: {finding.remedy}",
                flush=True,
            )
    return int(broken)


def examine() -> Iterator[Finding]:
    """Yields every finding, each as soon as it is known."""
    yield Finding("python", f"{sys.version.split()[0]} ({sys.executable})")
    installed = list(check_packages())
    yield from installed
    if any(finding.remedy for finding in installed):
        return  # What follows would only report the same fault, less clearly.
    probe = run_python(*_PROBE)
    lines = [line for line in probe.output.splitlines() if line.startswith('{"part"')]
    found = {part["part"]: part["found"] for part in map(json.loads, lines)}
    for part, check in _CHECKS.items():
        if part not in found:
            yield Finding(part, f"ends the process that loads it ({how_ended(probe)})", AFRESH)
            return
        yield from check(found[part])
    if "error" not in found["horovod"]:
        yield check_allreduce()
