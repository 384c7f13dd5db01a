"""The checkpoints of a run: rank 0's store keeps them in the log folder, the others do nothing."""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import restore
from trainer.checkpoints.folder_store import FolderStore
from trainer.checkpoints.manifest import RunFacts
from trainer.config import RunConfig
from trainer.errors import UserError


class Store(Protocol):
    """Saves a run's checkpoints, and restores the run from them."""

    def check_room(self) -> None:
        """Finds out before a run whether the disk has room for two checkpoints: old and new.

        Raises:
          UserError: it has not.
        """

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        """Loads what the run goes on from: the newest good checkpoint, or --init_checkpoint.

        Returns:
          messages for the console: what was loaded, and what has changed since.

        Raises:
          UserError: --resume forbids what is there, or a checkpoint can't be loaded.
        """

    def roll_back(self, session: tf1.Session) -> tuple[str, ...]:
        """Loads the newest good checkpoint in the middle of a run.

        Returns:
          messages for the console, as `restore` does.

        Raises:
          UserError: there is none.
        """

    def save(self, session: tf1.Session, step: int) -> None:
        """Saves a checkpoint, then removes the oldest.

        Raises:
          OSError: it could not be written; the earlier ones are still there.
        """

    def save_before(self, session: tf1.Session, step: int) -> None:
        """Saves the state before a step that was counted, but not applied.

        Raises:
          OSError: it could not be written.
        """

    def lacks_evaluation(self, step: int) -> bool:
        """Whether the run ended between the checkpoint of a step and the evaluation after it."""

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        """Notes an evaluation's result, and keeps the best checkpoint apart.

        Args:
          session: whose variables were evaluated.
          step: after which they were.
          top1: share of the validation examples that were classified right.

        Raises:
          OSError: it could not be written.
        """


class NullStore:
    """What ranks other than 0 get, whose variables come by broadcast."""

    def check_room(self) -> None:
        pass

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        del session
        return ()

    def roll_back(self, session: tf1.Session) -> tuple[str, ...]:
        del session
        return ()

    def save(self, session: tf1.Session, step: int) -> None:
        del session, step

    def save_before(self, session: tf1.Session, step: int) -> None:
        del session, step

    def lacks_evaluation(self, step: int) -> bool:
        del step
        return False

    def note_evaluation(self, session: tf1.Session, step: int, top1: float) -> None:
        del session, step, top1


class NoLogdirStore(NullStore):
    """Rank 0's without --logdir: it may start from --init_checkpoint, and has nothing to keep."""

    def __init__(self, init_checkpoint: str | None) -> None:
        """Takes note of the network's variables in the default graph."""
        self._init_checkpoint = init_checkpoint
        self._network = restore.network_variables()

    def restore(self, session: tf1.Session) -> tuple[str, ...]:
        return restore.initialize(session, self._init_checkpoint, self._network)

    def roll_back(self, session: tf1.Session) -> tuple[str, ...]:
        del session
        raise UserError("--on_nonfinite: rollback needs --logdir, got none")


def create_store(
    config: RunConfig, *, rank: int, variables: Sequence[tf.Variable], facts: RunFacts
) -> Store:
    """The store of one worker of a run."""
    if rank != 0:
        return NullStore()
    if config.logdir is None:
        return NoLogdirStore(config.init_checkpoint)
    return FolderStore(config, config.logdir, variables, facts)
