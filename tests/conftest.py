"""What several test files share: a run costs half a minute."""

import os
import signal

import fast_tensorflow  # noqa: F401
import pytest
import tiny
from processes import train_script

# A shell has its background jobs ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _environment():
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def environment_stays():
    """Fails a test that leaves environment variables behind: they would reach all later tests."""
    before = _environment()
    yield
    assert _environment() == before


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of 60 steps on two workers, by scripts/train.sh, with everything logged."""
    logdir = tmp_path_factory.mktemp("run")
    flags = [
        *tiny.FLAGS,
        "--steps=60",
        "--checkpoint_every=25",
        "--histogram_every=20",
        "--profile_steps=42:44",
        f"--mllog={logdir}/mlperf.log",
        f"--logdir={logdir}",
        f"--result_json={logdir}/result.json",
    ]
    done = train_script(2, flags)
    assert done.returncode == 0, done.stdout + done.stderr
    (logdir / "console.txt").write_text(done.stdout, encoding="utf-8")
    return logdir


def pytest_terminal_summary(terminalreporter):
    """Says how the compiled kernels were tested, which not every machine can run."""
    reports = [
        report
        for outcome in ("passed", "skipped", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    if not any("test_cpu_" in report.nodeid for report in reports):
        return  # None of their tests was asked for.
    import kernels

    passed = terminalreporter.stats.get("passed", [])
    terminalreporter.write_line(f"compiled kernels: {kernels.describe_tests(passed)}")
