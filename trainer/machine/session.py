"""The configuration of a worker's sessions: its GPU, its threads, its graph optimizers."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as tf1
from tensorflow.core.protobuf.config_pb2 import CallableOptions
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from trainer.config import ModelConfig
from trainer.cpu_kernels import library
from trainer.errors import UserError
from trainer.machine import cores, library_pages
from trainer.process import launcher


def find_gpu(local_rank: int, local_size: int) -> int | None:
    """Returns the number of this worker's GPU among those that it sees; None: there is none.

    Args:
      local_rank: rank of this worker on its host.
      local_size: number of workers on this host.

    Raises:
      UserError: there are GPUs, but fewer than workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    launched = launcher.find()
    if not gpus:
        return None
    if len(gpus) == 1 and launched is not None and launched.name != "horovodrun":
        return 0  # srun and mpirun can give each worker its own GPU alone.
    if local_size > len(gpus):
        raise UserError(
            f"{local_size} workers on this host, but {len(gpus)} GPUs: start one worker per GPU",
            known_to_all=False,
        )
    return local_rank


def step_device() -> str:
    """Returns the device that runs steps, as sessions of `create_config` name it."""
    return "/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0"


def create_config(
    *,
    local_rank: int = 0,
    local_size: int = 1,
    model: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
) -> tf.compat.v1.ConfigProto:
    """Returns the configuration of every session of this process.

    Args:
      local_rank: rank of this worker on its host, and number of its GPU, where there are GPUs.
      local_size: number of workers on this host, which share its cores evenly.
      model: whether XLA compiles clusters of operations, and the layout on GPUs.

    Raises:
      UserError: there are GPUs, but fewer than workers.
    """
    gpu = find_gpu(local_rank, local_size)
    threads = cores.worker_cores(local_size)
    launched = launcher.find()
    if gpu is not None:
        operations_at_once = threads
    elif launched is not None and launched.size > (local_size if threads == 1 else 1):
        # Two at a time: a gradient is passed on to the other workers while a long operation runs.
        # This was timed neither with workers of several cores nor on several hosts.
        operations_at_once = 2
    else:
        # One operation at a time has all cores: two would evict each other's data from the cache (2
        # cores, resnet_v2_50: 2 % per step). The same holds for workers of one core each, all on
        # one host: averaging costs the core the same time, whenever it is done.
        operations_at_once = 1
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=operations_at_once,
    )
    if gpu is not None:
        config.gpu_options.visible_device_list = str(gpu)
        config.gpu_options.allow_growth = True
    else:
        _limit_optimizers(config.graph_options.rewrite_options)
    if model.layout == "nhwc":
        config.graph_options.rewrite_options.layout_optimizer = RewriterConfig.OFF
    if model.xla:
        if model.xla_scope == "graph":  # Else operations are marked: see graph/network.py.
            level = tf.compat.v1.OptimizerOptions.ON_1
            config.graph_options.optimizer_options.global_jit_level = level
    else:  # XLA fuses BN itself, and can't compile our operations.
        library.add_optimizer(config.graph_options.rewrite_options)
    return config


def open_session(
    *,
    local_rank: int = 0,
    local_size: int = 1,
    model: ModelConfig = ModelConfig(),  # noqa: B008
) -> tf.compat.v1.Session:
    """Opens a session for the default graph, which is complete.

    What the libraries needed to get this far is no longer part of the process's memory.

    Args:
      local_rank: as in `create_config`.
      local_size: as in `create_config`.
      model: as in `create_config`.

    Raises:
      UserError: there are GPUs, but fewer than workers.
    """
    config = create_config(local_rank=local_rank, local_size=local_size, model=model)
    library_pages.give_back()
    return tf.compat.v1.Session(config=config)


def prepare(
    session: tf1.Session,
    fetches: Sequence[tf.Tensor | tf.Operation],
    feeds: Sequence[tf.Tensor] = (),
) -> Callable[..., list[Any]]:
    """Returns what `session.make_callable` returns, ready to run.

    With `make_callable`, the first call also prepares the part of the graph that it runs, which
    takes 0.3 s on 2 cores in the graph of resnet_v2_50's training step, however small the part.

    Args:
      session: the session.
      fetches: what a call returns the values of, in their order, and operations that it runs.
      feeds: what a call is given the values of, in their order.
    """
    tensors = [fetch.name for fetch in fetches if isinstance(fetch, tf.Tensor)]
    operations = [fetch.name for fetch in fetches if not isinstance(fetch, tf.Tensor)]
    options = CallableOptions(feed=[feed.name for feed in feeds], fetch=tensors, target=operations)
    return session._make_callable_from_options(options)


def _limit_optimizers(options: RewriterConfig) -> None:
    """Leaves out those of TensorFlow's graph optimizers that change nothing on CPUs.

    They take a quarter of the time of the first step. A second time over the graph removes 5 % of
    resnet_v2_50's operations, none of which takes time; there is no layout to choose; and there are
    no loops, and no hints for the optimizer of memory. Results are alike to the bit.
    """
    options.meta_optimizer_iterations = RewriterConfig.ONE
    options.layout_optimizer = RewriterConfig.OFF
    options.loop_optimization = RewriterConfig.OFF
    options.memory_optimization = RewriterConfig.NO_MEM_OPT
