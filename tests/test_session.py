"""The resources that a worker may use, and who started it."""

import os
import sys

import benchmark_workers
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from processes import run

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.machine import cores as machine_cores
from trainer.machine import session
from trainer.process import host_cores, launcher, settings


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
    monkeypatch.setattr(host_cores, "quota_cores", lambda: 64)
    assert machine_cores.worker_cores(local_size) == threads
    config = session.create_config(local_size=local_size)
    assert config.intra_op_parallelism_threads == threads


@pytest.mark.parametrize(
    ("cores", "local_size", "workers", "operations"),
    [
        (8, 1, 1, 1),
        (8, 8, 8, 1),  # A core each, one host: averaging takes the core's time whenever it does.
        (8, 8, 16, 2),  # Two hosts: the network's time is nobody's.
        (8, 2, 2, 2),  # Cores enough that one averages while the others compute.
        (1, 1, 2, 2),
    ],
)
def test_operations_at_once_are_two_where_averaging_can_go_on_beside_computing(
    monkeypatch, cores, local_size, workers, operations
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(host_cores, "quota_cores", lambda: 64)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", str(workers))
    config = session.create_config(local_size=local_size)
    assert config.inter_op_parallelism_threads == operations


def test_a_containers_quota_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(host_cores, "quota_cores", lambda: 3)
    assert host_cores.available_cores() == 3


def test_a_worker_that_its_launcher_has_bound_keeps_what_it_got(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    monkeypatch.setattr(host_cores, "quota_cores", lambda: 64)
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x30")
    assert machine_cores.worker_cores(4) == 2


@pytest.mark.parametrize(
    ("of_workers", "quota", "threads"),
    [
        ([{0, 1}, {2, 3}], 64, 2),  # Bound to cores of their own, as by Open MPI 5.
        ([{0, 1}, {2, 3, 4, 5, 6, 7}], 64, 2),
        ([{0, 1, 2, 3}, {0, 1, 2, 3}], 64, 2),  # Bound to one socket.
        ([{0, 1, 2, 3}, {2, 3, 4, 5}], 64, 3),
        ([set(range(8)), set(range(8))], 64, 4),  # Not bound.
        ([set(range(8)), set(range(8)), set(range(8))], 64, 2),
        ([{0}, {0}], 64, 1),
        ([{0, 1, 2, 3}, {4, 5, 6, 7}], 4, 2),
    ],
)
def test_a_worker_has_its_part_of_the_cores_that_several_may_use(
    monkeypatch, of_workers, quota, threads
):
    monkeypatch.setattr(launcher, "find_cores_of_workers", lambda local_size: of_workers)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: of_workers[0])
    monkeypatch.setattr(host_cores, "quota_cores", lambda: quota)
    assert machine_cores.worker_cores(len(of_workers)) == threads


LAUNCHER = """
import os, subprocess, sys
cores = sorted(os.sched_getaffinity(0))
names, code = sys.argv[1:]
def start(rank, cores, **variables):
    return subprocess.Popen(
        [*("taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable, "-c", code)],
        env={**os.environ, **variables}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
rank, size = names.split()
workers = [start(n, cores[n:n + 1] or cores, **{rank: str(n), size: "2"}) for n in range(2)]
remote = start(None, cores)  # The daemon of another host, say.
for worker in workers:
    print("go", file=worker.stdin, flush=True)
for worker in workers:
    print(worker.stdout.readline(), end="")
for process in (*workers, remote):
    process.communicate()
"""
WORKER = """
import sys
from trainer.process import launcher
for line in sys.stdin:
    print(sorted(map(sorted, launcher.find_cores_of_workers(2))), flush=True)
"""


@pytest.mark.parametrize(
    "names", ["OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE", "PMI_RANK PMI_SIZE"]
)
def test_workers_find_each_others_cores(names):
    done = run([sys.executable, "-c", LAUNCHER, names, WORKER])
    cores = sorted(os.sched_getaffinity(0))
    expected = sorted([cores[:1], cores[1:2] or cores])
    assert done.stdout.splitlines() == [str(expected)] * 2, done.stderr


def test_without_a_launcher_there_are_no_other_workers():
    assert launcher.find_cores_of_workers(2) == []


# Two sockets, two cores each, two threads each, numbered as Linux does: a core's are 4 apart.
SOCKETS = {core: (core % 4 // 2, core % 4, core) for core in range(8)}


@pytest.fixture
def bound(monkeypatch):
    """A machine of eight cores: binds a worker, and tells the cores that all its threads got."""

    def bind(local_rank, local_size, *, cores=SOCKETS, quota=64):
        asked = {}
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores))
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: asked.update({pid: cores}))
        monkeypatch.setattr(host_cores, "quota_cores", lambda: quota)
        monkeypatch.setattr(host_cores, "_locate_core", SOCKETS.get)
        machine_cores.bind_worker(local_rank, local_size)
        if not asked:
            return None
        assert {0, os.getpid()} <= set(asked)
        (share,) = {tuple(each) for each in asked.values()}
        return share

    monkeypatch.setattr(session.tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setenv(settings.BOUND, "")  # So that it is as it was, after the test.
    monkeypatch.delenv(settings.BOUND)
    for variable in ("SLURM_CPU_BIND", "OMPI_MCA_orte_bound_at_launch"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    return bind


@pytest.mark.parametrize("worker", range(3))
def test_a_process_alone_is_measured_on_the_cores_that_a_worker_has(bound, worker):
    assert set(bound(worker, 3)) == benchmark_workers._share(worker, 3)


@pytest.mark.parametrize(
    ("local_rank", "local_size", "share"),
    [(0, 2, (0, 4, 1, 5)), (1, 2, (2, 6, 3, 7)), (1, 4, (1, 5)), (0, 3, (0, 4)), (2, 3, (6, 3, 7))],
)
def test_a_worker_is_bound_to_neighbouring_cores(bound, monkeypatch, local_rank, local_size, share):
    assert bound(local_rank, local_size) == share
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(share))
    assert machine_cores.worker_cores(local_size) == len(share)


def test_workers_that_cannot_have_cores_to_themselves_are_not_bound(bound, monkeypatch):
    assert bound(0, 1) is None
    assert bound(0, 9) is None
    assert bound(0, 2, quota=3) is None
    assert machine_cores.worker_cores(2) == 1
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x30")
    assert bound(0, 2) is None


def test_workers_of_launchers_that_bind_are_left_to_them(bound, monkeypatch):
    monkeypatch.delenv("HOROVOD_RANK")
    assert bound(0, 2) is None
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert bound(0, 2) is None


def test_workers_with_gpus_are_not_bound(bound, monkeypatch):
    monkeypatch.setattr(session.tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert bound(0, 2) is None


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(session.tf.config, "list_physical_devices", lambda kind: ["GPU:0", "GPU:1"])


@pytest.mark.parametrize(("layout", "optimizer"), [("auto", "DEFAULT"), ("nhwc", "OFF")])
def test_on_gpus_a_layout_is_what_the_flag_says(two_gpus, layout, optimizer):
    assert layout_optimizer(layout) == optimizer


def test_on_cpus_there_is_no_layout_to_choose():
    assert layout_optimizer("auto") == layout_optimizer("nhwc") == "OFF"


def layout_optimizer(layout):
    config = session.create_config(model=ModelConfig(layout=layout))
    options = config.graph_options.rewrite_options
    return options.Toggle.Name(options.layout_optimizer)


def test_convolutions_are_fused():
    with tf.Graph().as_default(), tf1.Session(config=session.create_config()) as run:
        images, filters = tf1.placeholder(tf.float32, [1, 8, 8, 3]), tf.ones([3, 3, 3, 4])
        result = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, filters, 1, "SAME"), tf.ones(4)))
        seen = tf1.RunMetadata()
        options = tf1.RunOptions(output_partition_graphs=True)
        run.run(result, {images: np.zeros(images.shape)}, options=options, run_metadata=seen)
    kinds = [node.op for part in seen.partition_graphs for node in part.node]
    names = ("Conv2D", "BiasAdd", "Relu")
    (fused,) = [kind for kind in kinds if any(name in kind for name in names)]
    assert "FusedConv2D" in fused


def test_a_worker_has_the_gpu_of_its_local_rank_and_memory_as_it_needs(two_gpus):
    for local_rank in (0, 1):
        options = session.create_config(local_rank=local_rank, local_size=2).gpu_options
        assert (options.visible_device_list, options.allow_growth) == (str(local_rank), True)
    assert session.step_device() == "/gpu:0"


def test_more_workers_than_gpus_are_refused(two_gpus):
    with pytest.raises(UserError) as refused:
        session.find_gpu(2, 3)
    line = "3 workers on this host, but 2 GPUs: start one worker per GPU"
    assert str(refused.value) == line


def test_a_worker_to_which_srun_leaves_one_gpu_has_that(monkeypatch):
    monkeypatch.setattr(session.tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert session.find_gpu(0, 1) == 0
    with pytest.raises(UserError):
        session.find_gpu(1, 2)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert session.find_gpu(1, 2) == 0
