"""--mode=export: writes a network for serving, in the format that is asked for."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import exit_status
from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.errors import UserError
from trainer.graph.network import classify
from trainer.inputs.class_names import describe_names, name_classes
from trainer.inputs.dataset import at_evaluation_size
from trainer.machine import session
from trainer.modes.export import check, formats, frozen, model_card, signatures
from trainer.process import files, launcher, texts
from trainer.run import outputs


def run(config: Config) -> int:
    """Writes the network of a checkpoint to --export_dir, checked, whole or not at all."""
    trained = outputs.as_trained(config)
    config, known_names = trained.config, trained.class_names
    launcher.refuse(config.mode)
    export_format = formats.find(config.run.export_format)
    # Predictions are those of an evaluation.
    config = dataclasses.replace(config, data=at_evaluation_size(config.data))
    prefix, skipped = search.choose(config.run)
    target = _find_target(config)
    num_classes = restore.count_classes(prefix, config.model.num_classes)
    names = name_classes(known_names, num_classes)
    outputs.remark(*skipped, *trained.remarks, *_describe_flags(config))
    outputs.remark(*describe_names(known_names, num_classes))
    precision = config.run.export_precision
    of_network = "float32" if export_format.computes_in_float32 else precision
    examples = check.Examples(config.data)
    # Predictions are compared with those in float32, whatever is exported.
    with _restored(config, prefix, num_classes, "float32") as network:
        expected = network.session.run(network.logits, {network.images: examples.pixels})
        if not np.isfinite(expected).all():
            raise UserError(
                f"{prefix}: its logits are no finite numbers, as of a network that has diverged: "
                "--checkpoint names another"
            )
        exported = _freeze(config, network) if of_network == "float32" else None
    if exported is None:
        with _restored(config, prefix, num_classes, of_network) as network:
            exported = _freeze(config, network)
    try:
        with files.replacing(target) as temporary:
            lines = [texts.printable(name) for name in names]
            export_format.write(temporary, exported, config.data, lines, precision)
            difference = check.compare(temporary, export_format, examples, expected, precision)
            facts = {
                "format": config.run.export_format,
                "precision": precision,
                "signatures": export_format.signatures,
                "folded_batch_norms": exported.num_folded,
                "largest_difference": difference,
            }
            is_as_evaluated = not trained.changed
            model_card.write(temporary, config, prefix, names, facts, is_as_evaluated)
    except frozen.NotExportableError as error:
        raise _refusal(config, error) from error
    except (OSError, tf.errors.OpError) as error:
        reason = texts.first_line(error)
        raise UserError(
            f"--export_dir: {target} was not written ({reason})", status=exit_status.FAILED
        ) from error
    print(
        f"{prefix}: exported to {target}; loaded again by {export_format.runtime} alone, its "
        f"logits differ by {difference:.1g} of the largest at most"
    )
    return 0


class _Network(NamedTuple):
    """A checkpoint's network: the session with its weights, its images and its logits."""

    session: tf1.Session
    images: tf.Tensor
    logits: tf.Tensor


@contextlib.contextmanager
def _restored(config: Config, prefix: str, num_classes: int, precision: str) -> Iterator[_Network]:
    """Builds the network of a checkpoint on the CPU, with activations of a type, and loads it."""
    model = dataclasses.replace(config.model, precision=precision)
    config = dataclasses.replace(config, model=model)
    size = config.data.image_size
    options = session.create_config()
    options.device_count["GPU"] = 0
    with tf.Graph().as_default():
        images = tf1.placeholder(tf.uint8, [None, size, size, 3], name=signatures.PIXELS_INPUT)
        logits = classify(config, images, num_classes=num_classes)
        with tf1.Session(config=options) as export_session:
            variables = restore.network_variables()
            averages = config.fine_tuning.init_averages
            restore.restore_weights(export_session, prefix, variables, averages=averages)
            yield _Network(export_session, images, logits)


def _freeze(config: Config, network: _Network) -> frozen.Frozen:
    try:
        return frozen.freeze(*network)._replace(loss=config.optimizer.loss)
    except frozen.NotExportableError as error:
        raise _refusal(config, error) from error


def _refusal(config: Config, error: frozen.NotExportableError) -> UserError:
    return UserError(f"--model: {config.model.model} can't be exported: {error}")


def _describe_flags(config: Config) -> tuple[str, ...]:
    """Returns a line about a flag that one might take for that of the exported type."""
    precision = config.model.precision
    if precision in ("float32", config.run.export_precision):
        return ()
    return (
        f"--precision={precision} is for training and evaluation; exported is "
        f"--export_precision={config.run.export_precision}",
    )


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
