"""Fixtures and hooks that several test files share: a run costs half a minute."""

import gc
import os
import signal
from pathlib import Path

import kernel_summary
import pytest
from processes import train_script

# A shell has its background jobs ignore Ctrl-C, and all that they start; nohup the terminal's end.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# What a launcher, or a person, has said is not meant for the workers that tests speak of.
OF_LAUNCHERS = ("HOROVOD_", "OMPI_", "PMI", "SLURM_")
for name in [each for each in os.environ if each.startswith(OF_LAUNCHERS)]:
    del os.environ[name]
os.environ["KERAS_BACKEND"] = "tensorflow"  # Of which scripts/convert_keras_weights.py is.


# Files whose tests run one after the other, in two rows: those to whose workers things happen, and
# those that start workers, or look at what these have left (`run`). More than two such jobs at once
# would be slow. (One of test_benchmark's is such, too.)
WITH_WORKERS = {
    "faults": {"test_doctor", "test_faults", "test_keeper", "test_network_hosts"},
    "runs": {
        "test_distributed",
        "test_evaluate",
        "test_golden_losses",
        "test_mllog",
        "test_monitoring",
        "test_tensorboard",
        "test_train",
    },
}


def pytest_configure(config):
    """Loads TensorFlow, but not into the process that only hands out tests to others."""
    if not config.getoption("numprocesses", None):
        gc.disable()  # Until all is loaded: see below.
        import fast_tensorflow  # noqa: F401


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Exempts all modules and tests from the collections of garbage that tests bring about."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Runs the tests of a file in one process, since they share what they start."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            rows = (row for row, files in WITH_WORKERS.items() if Path(file).stem in files)
            return next(rows, file)

    return Scheduling(config, log)


def _environment():
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def environment_stays():
    """Fails a test that leaves environment variables behind: they would reach all later tests."""
    before = _environment()
    yield
    assert _environment() == before


@pytest.fixture(autouse=True)
def signals_stay():
    """Gives signals their handlers back: what a test ignores, all that later tests start would."""
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [(each, signal.getsignal(each)) for each in signals]
    yield
    for each, handler in before:
        signal.signal(each, handler)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of 60 steps on two workers, by scripts/train.sh, with everything logged."""
    import tiny

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


@pytest.fixture(autouse=True)
def all_kernels(request, record_property, environment_stays):
    """Gives tests of the compiled kernels all, and notes in the report how they run here."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.path.name.startswith("test_cpu_"):
            import kernels

            kernels.all_of_them(patch)
            record_property(kernel_summary.HOW, kernels.describe())
        yield


def pytest_terminal_summary(terminalreporter):
    """Says how the compiled kernels were tested, which not every machine can run."""
    stats = terminalreporter.stats
    reports = [each for name in ("passed", "skipped", "failed") for each in stats.get(name, [])]
    if line := kernel_summary.describe(reports):
        terminalreporter.write_line(line)
