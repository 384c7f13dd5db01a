"""Chooses the store of a worker's checkpoints: rank 0's keeps them, the others' do nothing."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.checkpoints import restore
from trainer.checkpoints.folder_store import Store
from trainer.checkpoints.manifest import RunFacts
from trainer.config import RunConfig
from trainer.errors import UserError


class NullStore(Store):
    """What ranks other than 0 get, whose variables come by broadcast, and runs without --logdir."""

    def __init__(self, init_checkpoint: str | None = None) -> None:
        self._init_checkpoint = init_checkpoint
        self._network = restore.network_variables()
        self.story = ()

    def check_room(self) -> None:
        pass

    def restore(self, session: tf1.Session) -> None:
        self.story = restore.initialize(session, self._init_checkpoint, self._network)

    def roll_back(self, session: tf1.Session) -> None:
        del session

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
    """Rank 0's without --logdir: there is nothing to go back to."""

    def roll_back(self, session: tf1.Session) -> None:
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
    return Store(config, config.logdir, variables, facts)
