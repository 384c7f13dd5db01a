"""The workers of a run, and the operations between them. The only module that imports Horovod."""

import contextlib
import functools
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer import exit_status
from trainer.config import Config
from trainer.errors import UserError
from trainer.machine import cores, session
from trainer.process import launcher, settings

# Prefix of the names of collectives that a step waits for: they end Horovod's cycle early, by
# scripts/horovod/patches/speed/01-urgent-tensors.patch, which compares this very prefix.
URGENT = "urgent/"

# Parts of the errors in the other workers when one ends or stands still: of Horovod, which has
# printed why then, and of Gloo within a collective, which prints nothing.
_SIGN_OF_END = "Horovod has been shut down"
_SIGNS_OF_GLOO = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout",
)
_PLACE_IN_SOURCE = re.compile(r"^.*?\[[^\]]*\.(cc|h):\d+\] ")


class Worker(NamedTuple):
    """The place of this process among the workers of a run.

    Attributes:
      rank: number of this worker, in [0, size).
      size: number of workers in the run.
      local_rank: number of this worker on its host, in [0, local_size).
      local_size: number of workers on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


class Group:
    """The workers of a run, seen from one of them. This class is the group of a single process.

    Its graph operations leave tensors as they are and its gatherings have one part, so that a loop
    written for many workers runs on one, without Horovod.
    """

    def __init__(self, worker: Worker = Worker()) -> None:  # noqa: B008 (immutable)
        self.worker = worker

    def average(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Returns the mean of `tensor` over all workers.

        Args:
          tensor: this worker's values.
          name: name of the collective; see `URGENT`.
        """
        del name
        return tensor

    def all_to_all(self, rows: tf.Tensor, name: str) -> tf.Tensor:
        """Sends row k to worker k; returns what this worker got, in order of rank.

        Args:
          rows: [size, ...], of one shape on all workers.
          name: name of the collective; see `URGENT`.
        """
        del name
        return rows

    def all_gather(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Returns every worker's `tensor`, [size, ...], in order of rank.

        Args:
          tensor: of one shape on all workers.
          name: name of the collective; see `URGENT`.
        """
        del name
        return tensor[tf.newaxis]

    def build_broadcast(self, variables: Sequence[tf.Variable]) -> tf.Operation:
        """Builds an operation that gives every worker rank 0's values of `variables`."""
        del variables
        return tf.no_op()

    def gather(self, value: Any) -> list[Any]:
        """Returns every worker's `value`, in order of rank, on every worker. A collective.

        Args:
          value: anything that JSON can represent.
        """
        return [value]

    def start_timeline(self, path: str) -> None:
        """Begins Horovod's own trace, in a file for Chrome or Perfetto.

        Horovod must have been started with HOROVOD_TIMELINE, which `connect` sets where
        --profile_steps is given.
        """
        del path

    def stop_timeline(self) -> None:
        """Ends Horovod's own trace."""

    def shutdown(self) -> None:
        """Leaves the group."""

    @contextlib.contextmanager
    def explain_loss(self) -> Iterator[None]:
        """Turns the error of a collective inside into a UserError where another worker was lost."""
        yield

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """Turns a UserError of any worker inside into one error, raised on all of them at the end.

        The work inside must have no collectives: opening the data, building the graph.
        """
        mine = None
        try:
            yield
        except UserError as error:
            mine = [str(error), error.status]
        with self.explain_loss():
            reasons = self.gather(mine)
        failed = [rank for rank, reason in enumerate(reasons) if reason is not None]
        if not failed:
            return
        first, status = reasons[failed[0]]
        if reasons.count([first, status]) < self.worker.size:
            first = f"worker {failed[0]} of {self.worker.size}: {first}"
        raise UserError(first, status=status)


class HorovodGroup(Group):
    """The workers of a run under Horovod. Every collective has an explicit name."""

    def __init__(self, hvd: ModuleType) -> None:
        super().__init__(Worker(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()))
        self._hvd = hvd

    def average(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        # A slash at its end makes a name of an operation that of no name scope.
        return self._hvd.allreduce(tensor, op=self._hvd.Average, name=f"{name}/")

    def all_to_all(self, rows: tf.Tensor, name: str) -> tf.Tensor:
        return tf.ensure_shape(self._hvd.alltoall(rows, name=f"{name}/"), rows.shape)

    def all_gather(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        gathered = self._hvd.allgather(tensor[tf.newaxis], name=f"{name}/")
        return tf.ensure_shape(gathered, [self.worker.size, *tensor.shape])

    def build_broadcast(self, variables: Sequence[tf.Variable]) -> tf.Operation:
        # Horovod sends each tensor by itself. Vectors, most of a network's variables, go together.
        together: dict[str, list[tf.Variable]] = {}
        for variable in variables:
            is_vector = variable.shape.rank == 1
            name = f"vectors/{variable.dtype.name}" if is_vector else variable.op.name
            together.setdefault(name, []).append(variable)
        return tf.group(*(op for name, part in together.items() for op in self._send(part, name)))

    def _send(self, variables: Sequence[tf.Variable], name: str) -> Iterator[tf.Operation]:
        """Adds the broadcast of one variable, or of vectors of one type; yields what assigns it."""
        graph = tf.compat.v1.get_default_graph()
        values = [graph.as_graph_element(variable) for variable in variables]  # Read already.
        value = values[0] if len(values) == 1 else tf.concat(values, 0)
        sent = self._hvd.broadcast(value, 0, name=f"{URGENT}broadcast/{name}/")
        sizes = [variable.shape[0] for variable in variables] if len(values) > 1 else []
        parts = tf.split(sent, sizes) if sizes else [sent]
        for variable, part in zip(variables, parts, strict=True):
            yield variable.assign(part, read_value=False)

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
            reason = _reason_of_loss(error.message)
            if reason is None:
                raise
            raise UserError(
                f"worker {self.worker.rank} of {self.worker.size} ends, since another one has "
                f"(its last lines say why) or does not answer ({reason})",
                known_to_all=False,
                status=exit_status.FAILED,
            ) from error

    @functools.cached_property
    def _control(self) -> "_ControlGraph":
        """Graph and session of `gather`, which works before and besides those of the main graph."""
        with tf.Graph().as_default(), tf.device("/cpu:0"):
            text = tf.compat.v1.placeholder(tf.uint8, [None])
            lengths = self._hvd.allgather(tf.shape(text), name=f"{URGENT}control/lengths")
            with tf.control_dependencies([lengths]):
                texts = self._hvd.allgather(text, name=f"{URGENT}control/texts")
            config = session.create_config(
                local_rank=self.worker.local_rank, local_size=self.worker.local_size
            )
            return _ControlGraph(tf.compat.v1.Session(config=config), text, lengths, texts)


def _reason_of_loss(message: str) -> str | None:
    """Returns why a collective failed, where another worker was lost; None: for another reason."""
    for line in message.splitlines():
        if any(sign in line for sign in _SIGNS_OF_GLOO):
            return _PLACE_IN_SOURCE.sub("", line).strip()
    return "see Horovod's lines above" if _SIGN_OF_END in message else None


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
      config: configuration of this run: how the workers communicate, and how long one may wait for
        the others.

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
