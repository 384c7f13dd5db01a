"""--mode=export: writes a SavedModel for serving, with the preprocessing inside."""

from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import exit_status
from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.errors import UserError
from trainer.graph import accuracy
from trainer.graph.network import classify
from trainer.machine import session
from trainer.process import files, launcher, texts
from trainer.run import outputs as results


def run(config: Config) -> int:
    """Writes the SavedModel of a checkpoint to --export_dir, whole or not at all."""
    config, *_, remarks = results.as_trained(config)
    launcher.refuse(config.mode)
    prefix, skipped = search.choose(config.run)
    target = _find_target(config)
    num_classes = restore.count_classes(prefix)
    results.remark(*skipped, *remarks)
    size = config.data.image_size
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.uint8, [None, size, size, 3], name="images")
        logits = classify(config, images, num_classes=num_classes)
        outputs = {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "classes": accuracy.predict(logits),
        }
        with tf1.Session(config=session.create_config()) as export_session:
            restore.restore_weights(
                export_session, prefix, restore.network_variables(), new_logits=False
            )
            try:
                with files.replacing(target) as temporary:
                    tf1.saved_model.simple_save(
                        export_session, str(temporary), inputs={"images": images}, outputs=outputs
                    )
            except (OSError, tf.errors.OpError) as error:
                reason = texts.first_line(error)
                raise UserError(
                    f"--export_dir: {target} was not written ({reason})",
                    status=exit_status.FAILED,
                ) from error
    print(f"{prefix}: exported to {target}")
    return 0


def _find_target(config: Config) -> Path:
    """Returns the folder to make.

    Raises:
      UserError: the folder is there already, or can't be made.
    """
    if config.run.export_dir is None:
        raise UserError("--export_dir: must be given with --mode=export, got none")
    target = Path(config.run.export_dir).absolute()
    if target.exists():
        raise UserError(f"--export_dir: must not be there yet, got {target}")
    files.check_writable(target.parent, "export_dir", is_folder=True)
    files.sweep_beside(target)
    return target
