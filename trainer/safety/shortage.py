"""Turns TensorFlow's errors of memory that does not suffice into one line."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from trainer import exit_status
from trainer.config import Config
from trainer.errors import UserError
from trainer.machine import memory


@contextlib.contextmanager
def explain_shortage(config: Config, *, trains: bool) -> Iterator[None]:
    """Raises, in place of an error inside that says that memory does not suffice, a UserError.

    Args:
      config: configuration of the run.
      trains: whether gradients are computed inside.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not memory.is_exhausted(error):
            raise
        remedies = ["a smaller --batch_size"]
        if trains:
            if config.model.recompute != "blocks" and not config.model.xla:
                remedies.append("--recompute=blocks")
            remedies.append("--accumulate_steps to have as many images per update")
        if config.model.precision == "float32":
            remedies.append("--precision=bfloat16")
        raise UserError(
            f"--batch_size: {config.data.batch_size} images of {config.data.image_size} px do not "
            f"fit in memory. Try {' and '.join(remedies)}",
            known_to_all=False,
            status=exit_status.OUT_OF_MEMORY,
        ) from error
