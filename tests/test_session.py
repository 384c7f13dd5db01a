"""What a worker may use, and who started it."""

import os

import pytest

from trainer import launcher, session


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HOROVOD_RANK": "3", "HOROVOD_SIZE": "8"}, ("horovodrun", 3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, ("mpirun", 0, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, ("mpirun", 1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, ("srun", 1, 4)),
        # Inside an sbatch script, but not under srun: one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
    ],
)
def test_launchers_are_told_by_their_environment(environ, expected):
    assert launcher.find(environ) == expected
    assert launcher.is_first(environ) == (expected is None or expected[1] == 0)


@pytest.mark.parametrize(
    ("cores", "local_size", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1)]
)
def test_workers_of_a_host_share_its_cores(monkeypatch, cores, local_size, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(session, "_quota_cores", lambda: 64)
    assert session.worker_cores(local_size) == threads
    config = session.create_config(local_size=local_size)
    assert config.intra_op_parallelism_threads == threads


def test_a_containers_quota_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(session, "_quota_cores", lambda: 3)
    assert session.available_cores() == 3


def test_a_worker_that_its_launcher_has_bound_keeps_what_it_got(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    monkeypatch.setattr(session, "_quota_cores", lambda: 64)
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x30")
    assert session.worker_cores(4) == 2
