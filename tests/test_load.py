"""The load of the cores by other processes, beside the clocks of such processes."""

import os
import subprocess
import sys
import time

import processes
import pytest

from trainer.machine.load import LoadMeter, Times, is_busy, others_share


def cpu_sec(pid):
    """The CPU time of a process by its own clock: see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def cpu_sec_of_all():
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def test_what_others_take_is_told_and_what_this_process_has_started_is_not_theirs():
    cores = len(os.sched_getaffinity(0))
    own = subprocess.Popen([sys.executable, "-c", processes.SPINNING])
    with processes.others_that_spin(1) as (other,), own:
        before = {"all": cpu_sec_of_all(), "own": cpu_sec(own.pid), "other": cpu_sec(other)}
        began = time.monotonic()
        meter = LoadMeter(cores)
        time.sleep(1.5)
        share = meter.others_share()
        elapsed = time.monotonic() - began
        after = {"all": cpu_sec_of_all(), "own": cpu_sec(own.pid), "other": cpu_sec(other)}
        own.kill()
    took = {name: after[name] - before[name] for name in before}
    found = share * cores * elapsed
    # There may be more processes on this machine. The kernel counts in ticks.
    assert 0.8 * took["other"] - 0.1 < found < took["all"] - took["own"] + 0.3


def share(of_cores, own, *, container=None, elapsed=10.0, cores=2, usable=2):
    before = Times(5.0, 100.0, 50.0, None if container is None else 30.0)
    after = Times(
        5.0 + elapsed,
        None if of_cores is None else 100.0 + of_cores,
        50.0 + own,
        None if container is None else 30.0 + container,
    )
    return others_share(before, after, cores=cores, usable_cores=usable)


def test_the_share_is_of_the_cores_that_this_process_may_use():
    assert share(20, 12) == pytest.approx(0.4)
    assert share(20, 0) == 1
    assert share(11.9, 12) == 0  # By ticks it is not exact.


def test_under_a_quota_idle_cores_are_enough():
    assert share(340, 20, cores=64, usable=2) == 0
    assert share(20 + 630, 20, cores=64, usable=2) == pytest.approx(0.5)


def test_under_a_quota_the_others_in_the_container_take_part_of_it():
    assert share(340, 12, container=15, cores=64, usable=2) == pytest.approx(0.15)
    assert share(16, 12, container=99, cores=2, usable=2) == pytest.approx(0.2)  # There is none.


@pytest.mark.parametrize(
    "times",
    [
        {"of_cores": 1, "own": 0, "elapsed": 0.5},
        {"of_cores": None, "own": 12},
        {"of_cores": 0, "own": 12},  # As in gVisor.
    ],
    ids=["too short", "no /proc/stat", "zeros"],
)
def test_what_cannot_be_told_is_not_told(times):
    assert share(**times) is None


def test_a_tenth_of_the_cores_is_no_disturbance_and_more_is():
    assert [is_busy(share) for share in (None, 0.0, 0.1, 0.11)] == [False, False, False, True]
