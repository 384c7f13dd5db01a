"""The workers of a run and what they do together. The only place that imports Horovod."""

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import UserError
from trainer.machine import cores, session
from trainer.process import launcher, settings

# Begins the name of a collective that a step waits for: it ends Horovod's cycle early, by
# scripts/horovod/patches/speed/01-urgent-tensors.patch, which compares this very prefix.
URGENT = "urgent/"

# What Horovod and Gloo say in the workers that are left when one of them ends or stands still.
_SIGNS_OF_LOSS = (
    "Horovod has been shut down",
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Timed out waiting",
)


class Worker(NamedTuple):
    """Who this process is among the workers of a run.

    Attributes:
      rank: in [0, size).
      size: workers in the run.
      local_rank: in [0, local_size).
      local_size: workers on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


class Group:
    """The workers of a run, seen from one of them: the one-process stand-in.

    Its graph operations leave tensors as they are and its gatherings have one part, so that a loop
    written for many workers runs on one, without Horovod.
    """

    def __init__(self, worker: Worker = Worker()) -> None:  # noqa: B008 (immutable)
        self.worker = worker

    def average(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """The mean of `tensor` over all workers; `name` is the collective's, see `URGENT`."""
        del name
        return tensor

    def build_broadcast(self, variables: Sequence[tf.Variable]) -> tf.Operation:
        """An operation that gives every worker rank 0's values of `variables`."""
        del variables
        return tf.no_op()

    def gather(self, value: Any) -> list[Any]:
        """Every worker's `value` (anything that JSON holds), in order of rank, on every worker."""
        return [value]

    def start_timeline(self, path: str) -> None:
        """Begins Horovod's own trace, in a file for Chrome or Perfetto: see `connect`."""
        del path

    def stop_timeline(self) -> None:
        """Ends it."""

    def shutdown(self) -> None:
        """Leaves the group."""

    @contextlib.contextmanager
    def explain_loss(self) -> Iterator[None]:
        """Raises a UserError where a collective inside failed since another worker has ended."""
        yield

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """A UserError of any worker inside becomes one error, raised on all of them at the end.

        It stands around work without collectives: opening the data, building the graph.
        """
        mine = None
        try:
            yield
        except UserError as error:
            mine = str(error)
        with self.explain_loss():
            reasons = self.gather(mine)
        failed = [rank for rank, reason in enumerate(reasons) if reason is not None]
        if not failed:
            return
        first = reasons[failed[0]]
        if reasons.count(first) == self.worker.size:
            raise UserError(first)
        raise UserError(f"worker {failed[0]} of {self.worker.size}: {first}")


class HorovodGroup(Group):
    """The workers of a run under Horovod. Every collective has an explicit name."""

    def __init__(self, hvd: ModuleType) -> None:
        super().__init__(Worker(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()))
        self._hvd = hvd

    def average(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return self._hvd.allreduce(tensor, op=self._hvd.Average, name=name)

    def build_broadcast(self, variables: Sequence[tf.Variable]) -> tf.Operation:
        return tf.group(
            *(
                tf.compat.v1.assign(
                    variable,
                    self._hvd.broadcast(variable, 0, name=f"{URGENT}broadcast/{variable.op.name}"),
                )
                for variable in variables
            )
        )

    def gather(self, value: Any) -> list[Any]:
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        tensors = self._control
        lengths, texts = tensors.session.run((tensors.lengths, tensors.texts), {tensors.text: text})
        ends = np.cumsum(lengths)
        parts = zip(ends - lengths, ends, strict=True)
        return [json.loads(texts[begin:end].tobytes()) for begin, end in parts]

    def start_timeline(self, path: str) -> None:
        self._hvd.start_timeline(path)

    def stop_timeline(self) -> None:
        self._hvd.stop_timeline()

    def shutdown(self) -> None:
        if "_control" in self.__dict__:
            self._control.session.close()
        self._hvd.shutdown()

    @contextlib.contextmanager
    def explain_loss(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            if not any(sign in error.message for sign in _SIGNS_OF_LOSS):
                raise
            raise UserError(
                f"worker {self.worker.rank} of {self.worker.size} ends, since another one has "
                "(its last lines say why) or does not answer (see Horovod's lines above)",
                known_to_all=False,
            ) from error

    @functools.cached_property
    def _control(self) -> "_ControlGraph":
        """A small graph of its own, so that workers can talk before and besides the main one."""
        with tf.Graph().as_default(), tf.device("/cpu:0"):
            text = tf.compat.v1.placeholder(tf.uint8, [None])
            lengths = self._hvd.allgather(tf.shape(text), name=f"{URGENT}control/lengths")
            with tf.control_dependencies([lengths]):
                texts = self._hvd.allgather(text, name=f"{URGENT}control/texts")
            config = session.create_config(
                local_rank=self.worker.local_rank, local_size=self.worker.local_size
            )
            return _ControlGraph(tf.compat.v1.Session(config=config), text, lengths, texts)


class _ControlGraph(NamedTuple):
    session: tf.compat.v1.Session
    text: tf.Tensor
    lengths: tf.Tensor
    texts: tf.Tensor


def load_horovod() -> ModuleType:
    """Returns Horovod's module for TensorFlow.

    Raises:
      ImportError, tf.errors.NotFoundError, ValueError: it is missing, or was built for another
        TensorFlow.
    """
    return importlib.import_module("horovod.tensorflow")


def connect(config: Config = Config()) -> Group:  # noqa: B008 (frozen)
    """Joins the workers that a launcher started with this one; without a launcher, stands alone.

    Args:
      config: of this run: how the workers talk, and how long one may wait for the others.

    Raises:
      UserError: a launcher started several processes, but Horovod is missing or can't join them.
    """
    launched = launcher.find()
    if launched is None:
        return Group()
    remedy = "run scripts/setup.sh, then python -m trainer --mode=doctor"
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    settings.apply(settings.Moment.HOROVOD, config, has_gpu=has_gpu)
    try:
        hvd = load_horovod()
        hvd.init()
    except (ImportError, tf.errors.NotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{launched.name} started {launched.size} workers, but Horovod does not work here "
            f"({reason}): {remedy}",
            known_to_all=False,  # It may be so on this host alone.
        ) from error
    if hvd.size() != launched.size:
        hvd.shutdown()
        raise UserError(
            f"{launched.name} started {launched.size} workers, but each is alone: Horovod was "
            "built without MPI; install one that has mpicc (Debian: libopenmpi-dev, RHEL: "
            f"openmpi-devel), {remedy}"
        )
    cores.bind_worker(hvd.local_rank(), hvd.local_size())
    return HorovodGroup(hvd)
