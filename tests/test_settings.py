"""Environment variables are set where they have to be, and where the user has not set them."""

import sys

import pytest
import tensorflow as tf
from processes import run

from trainer.config import CommunicationConfig, Config, ModelConfig, RunConfig, TelemetryConfig
from trainer.machine import loading
from trainer.process import settings
from trainer.process.settings import Moment

# Tells its settings and its number, starts again, and tells them once more.
PROGRAM = """
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], sys.prefix, flush=True)
from trainer.process import settings
settings.restart_with_settings()
"""


def start(monkeypatch, value):
    """Returns what the program prints where the variable has a value."""
    if value is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", value)
    done = run([sys.executable, "-c", PROGRAM, "two words"])
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=2) for line in done.stdout.splitlines()]


@pytest.mark.skipif(settings.has_gpu(), reason="tensors live on the GPU")
def test_it_starts_once_more_as_the_same_process_with_the_same_arguments(monkeypatch):
    (before, number, rest), (after, same_number, same_rest) = start(monkeypatch, None)
    assert before == "None"
    assert "glibc.malloc.hugetlb=1" in after
    assert (same_number, same_rest) == (number, rest)


def test_the_users_own_setting_stays(monkeypatch):
    ((value, *_),) = start(monkeypatch, "glibc.malloc.check=0")
    assert value == "glibc.malloc.check=0"


def apply(moment, environ, *, has_gpu=False, **groups):
    settings.apply(moment, Config(**groups), has_gpu=has_gpu, environ=environ)
    return environ


def test_what_the_user_has_set_stays():
    for setting in settings.SETTINGS:
        environ = apply(setting.moment, {setting.name: "7"})
        assert environ[setting.name] == "7"


def test_horovods_cycle_is_long_on_cpus_alone():
    assert apply(Moment.HOROVOD, {})["HOROVOD_CYCLE_TIME"] == "100"
    assert "HOROVOD_CYCLE_TIME" not in apply(Moment.HOROVOD, {}, has_gpu=True)


def test_flags_of_communication_and_of_the_profile_reach_horovod():
    environ = apply(
        Moment.HOROVOD,
        {},
        communication=CommunicationConfig(fusion_threshold_mb=3, autotune=True),
        run=RunConfig(logdir="runs/one"),
        telemetry=TelemetryConfig(profile_steps="1:2"),
    )
    assert environ["HOROVOD_FUSION_THRESHOLD"] == str(3 * 2**20)
    assert (environ["HOROVOD_AUTOTUNE"], environ["HOROVOD_TIMELINE"]) == ("1", "DYNAMIC")
    assert "HOROVOD_CYCLE_TIME" not in environ  # Horovod would not vary it.
    plain = apply(Moment.HOROVOD, {})
    assert not {"HOROVOD_FUSION_THRESHOLD", "HOROVOD_AUTOTUNE", "HOROVOD_TIMELINE"} & plain.keys()


@pytest.mark.parametrize(
    ("environ", "has_gpu", "threshold"),
    [
        ({}, False, None),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "3", "HOROVOD_LOCAL_SIZE": "3"}, False, None),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "3", "HOROVOD_LOCAL_SIZE": "3"}, True, "0"),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "3", "HOROVOD_LOCAL_SIZE": "1"}, False, "0"),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_SIZE": "1"}, False, None),
        (
            {
                "OMPI_COMM_WORLD_RANK": "0",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            False,
            "0",
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, False, "0"),
    ],
)
def test_what_a_ring_adds_up_is_fixed_where_runs_are_to_repeat(environ, has_gpu, threshold):
    name = "HOROVOD_FUSION_THRESHOLD"
    found = apply(Moment.HOROVOD, dict(environ), has_gpu=has_gpu, run=RunConfig(deterministic=True))
    assert found.get(name) == threshold
    assert name not in apply(Moment.HOROVOD, dict(environ), has_gpu=has_gpu)
    given = CommunicationConfig(fusion_threshold_mb=3)
    found = apply(
        *(Moment.HOROVOD, dict(environ)),
        has_gpu=has_gpu,
        run=RunConfig(deterministic=True),
        communication=given,
    )
    assert found[name] == str(3 * 2**20)


def test_xla_is_asked_for_beside_the_users_own_flags():
    model = ModelConfig(xla=True)
    environ = apply(Moment.TENSORFLOW, {"TF_XLA_FLAGS": "--tf_xla_clustering_debug"}, model=model)
    assert environ["TF_XLA_FLAGS"] == "--tf_xla_clustering_debug --tf_xla_cpu_global_jit"
    assert "TF_XLA_FLAGS" not in apply(Moment.TENSORFLOW, {})


@pytest.mark.parametrize("tf32", [False, True])
def test_tensor_float_32_is_as_the_flag_says(monkeypatch, tf32):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        loading.load_tensorflow(Config(model=ModelConfig(tf32=tf32)))
        assert tf.config.experimental.tensor_float_32_execution_enabled() == tf32
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)


STALL_CHECK = "HOROVOD_STALL_CHECK_TIME_SECONDS"
STALL_SHUTDOWN = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"


def test_horovods_stall_check_agrees_with_the_watchdog():
    environ = apply(Moment.HOROVOD, {}, run=RunConfig(watchdog_seconds=600))
    # It warns before the watchdog ends a step, and ends the job after its longest limit.
    assert int(environ[STALL_CHECK]) < 600 < 6 * 600 < int(environ[STALL_SHUTDOWN])
    assert (
        not {STALL_CHECK, STALL_SHUTDOWN}
        & apply(Moment.HOROVOD, {}, run=RunConfig(watchdog_seconds=0)).keys()
    )


@pytest.mark.parametrize("given", ["0", "never"])
def test_without_horovods_warning_there_is_no_shutdown(given):
    assert STALL_SHUTDOWN not in apply(Moment.HOROVOD, {STALL_CHECK: given})
