"""The store of a run's checkpoints: rank 0's keeps them in the log folder, others do nothing."""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints.folder_store import FolderStore
from trainer.checkpoints.manifest import RunFacts
from trainer.checkpoints.snapshot import Copied
from trainer.checkpoints.warm_start import Head, WarmStart
from trainer.config import FineTuningConfig, RunConfig


class Store(Protocol):
    """Saves a run's checkpoints, and restores the run from them.

    Attributes:
      keeps: whether this worker's store keeps what it saves.
    """

    keeps: bool

    def check_room(self) -> None:
        """Checks before a run that the disk has room for two checkpoints: the old and the new one.

        Raises:
          UserError: there is not enough room.
        """

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        """Loads what the run starts from: the newest good checkpoint, or --init_checkpoint.

        Returns:
          messages for the console: what was loaded, and what has changed since it was saved.

        Raises:
          UserError: --resume forbids what is there, or a checkpoint can't be loaded.
        """

    def roll_back(self, session: tf1.Session) -> tuple[str, ...] | None:
        """Loads the newest good checkpoint in the middle of a run.

        Returns:
          messages for the console, as `restore` does; None: there is no checkpoint.

        Raises:
          UserError: there are checkpoints, and none is good.
        """

    def save(self, session: tf1.Session, step: int) -> None:
        """Saves a checkpoint, then removes the oldest ones. It is on disk when this returns.

        Raises:
          OSError: it could not be written; the earlier checkpoints are still there.
        """

    def prepare_copy(self, session: tf1.Session) -> None:
        """Does beforehand what makes the first `copy`, and its save, slower than later ones.

        Any thread may call it while steps are run; no other method is called until it has returned.
        """

    def copy(self, session: tf1.Session, step: int) -> Copied:
        """Copies the variables, and returns what saves the copy as `save` does.

        That may be called by any thread while steps change the variables. The store's other
        methods that save wait for it, or it for them.

        Raises:
          Shortage: memory does not suffice.
        """

    def save_before(self, session: tf1.Session, step: int) -> None:
        """Saves the state before a step that was counted, but whose update was not applied.

        Raises:
          OSError: it could not be written.
        """

    def take_over(self, before: "Store") -> None:
        """Goes on as a store of the same folder, whose variables had other images."""

    def lacks_evaluation(self, step: int) -> bool:
        """Returns whether a run ended after the checkpoint of a step and before its evaluation."""

    def top1_after(self, step: int) -> float | None:
        """Returns the accuracy in the evaluation after a step; None where none is known."""

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        """Records an evaluation's result, and keeps a copy of the best checkpoint.

        Args:
          session: the session that holds the evaluated variables.
          step: the last step before the evaluation.
          top1: share of the validation examples that were classified correctly.

        Raises:
          OSError: it could not be written.
        """


class NullStore:
    """The store of ranks other than 0, which get their variables by broadcast."""

    keeps = False

    def check_room(self) -> None:
        pass

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        del session
        return ()

    def roll_back(self, session: tf1.Session) -> tuple[str, ...] | None:
        del session
        return ()

    def save(self, session: tf1.Session, step: int) -> None:
        del session, step

    def prepare_copy(self, session: tf1.Session) -> None:
        del session

    def copy(self, session: tf1.Session, step: int) -> Copied:
        del session, step
        return Copied(0, lambda: None)

    def save_before(self, session: tf1.Session, step: int) -> None:
        del session, step

    def take_over(self, before: Store) -> None:
        del before

    def lacks_evaluation(self, step: int) -> bool:
        del step
        return False

    def top1_after(self, step: int) -> float | None:
        del step
        return None

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        del session, step, top1


class NoLogdirStore(NullStore):
    """The store of rank 0 without --logdir: it loads --init_checkpoint and saves nothing."""

    def __init__(self, start: WarmStart) -> None:
        self._start = start

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        return (*self._start.load(session), "no --logdir: nothing of this run will be kept")

    def roll_back(self, session: tf1.Session) -> tuple[str, ...] | None:
        del session
        return None


def create_store(
    config: RunConfig,
    *,
    rank: int,
    variables: Sequence[tf.Variable],
    facts: RunFacts,
    fine_tuning: FineTuningConfig = FineTuningConfig(),  # noqa: B008 (immutable)
    head: Head | None = None,
) -> Store:
    """Creates the store of one worker of a run, for the network in the default graph.

    Args:
      config: the folder, and what to start from.
      rank: the worker's number; 0 alone saves and loads.
      variables: the variables to save and to restore.
      facts: facts about the run.
      fine_tuning: what is taken from --init_checkpoint.
      head: what this run's logits are for.
    """
    if rank != 0:
        return NullStore()
    start = WarmStart(config.init_checkpoint, fine_tuning, head)
    if config.logdir is None:
        return NoLogdirStore(start)
    return FolderStore(config, config.logdir, variables, facts, start)
