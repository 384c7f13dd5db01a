#!/usr/bin/env python3
"""Turns weights of Keras' ResNet50V2, 101V2 or 152V2 into a checkpoint, and a checkpoint back.

  scripts/convert_keras_weights.py --weights=FILE --out=DIR      a file .keras, .weights.h5 or .h5
  scripts/convert_keras_weights.py --weights=imagenet --model=ResNet50V2 --out=DIR     by download
  scripts/convert_keras_weights.py --init_checkpoint=DIR --to_keras=FILE

DIR gets model.ckpt-0, which --init_checkpoint=DIR of the trainer takes, and model.json. All values
stay what they are, to the bit, in both directions. The network is --model=keras_resnet_v2_50, _101
or _152 of the trainer, with --batch_norm_epsilon=1.001e-5.
"""

import argparse
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared import keras_weights, program
from shared.keras_weights import Kind, WeightsFile

from trainer.checkpoints import layout
from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.errors import UserError
from trainer.machine.loading import load_tensorflow
from trainer.process import files, texts

_IMAGENET, _NONE = "imagenet", "none"
_IMAGENET_CLASSES = 1000
_IMAGE_SIZE = 224
_PREFIX = "keras_"  # Of the names of these networks here, before their scopes.
_ENDINGS = (".keras", ".weights.h5")
_WAYS = ({"weights", "out", "model", "without_top"}, {"init_checkpoint", "to_keras"})


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--weights",
        help="a file .keras, .weights.h5 or .h5 of the network; imagenet: Keras downloads them; "
        "none: random ones",
    )
    parser.add_argument(
        "--model", choices=keras_weights.SCOPES, help="the network; a file tells it by itself"
    )
    parser.add_argument(
        "--without_top", action="store_true", help="leave out the last layer, with its classes"
    )
    parser.add_argument("--out", type=program.path, help="folder to make for the checkpoint")
    parser.add_argument(
        "--image_size",
        type=program.at_least(32),
        default=_IMAGE_SIZE,
        help="height and width of the images that the weights are used for, for model.json; "
        f"default: {_IMAGE_SIZE}",
    )
    parser.add_argument(
        "--init_checkpoint",
        type=program.path,
        help="the way back: a checkpoint of one of these networks, as the trainer takes it",
    )
    parser.add_argument("--to_keras", type=program.path, help="file to make: .keras or .weights.h5")
    arguments = parser.parse_args()
    given = {name for name, value in vars(arguments).items() if value not in (None, False)}
    mixed = [min(given & way) for way in _WAYS if given & way]
    if len(mixed) > 1:
        parser.error(f"--{mixed[0]}: must not be given with --{mixed[1]}")
    if not {"weights", "out"} <= given and not _WAYS[1] <= given:
        parser.error("must be given: --weights with --out, or --init_checkpoint with --to_keras")
    return arguments


def main() -> None:
    """Converts what the command line names, and says what to type next."""
    arguments = _parse_arguments()
    # Nothing here is worth a GPU, whose memory a training may have.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    # Whatever the user's keras.json says: another library may not be installed.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if arguments.weights is None:
        target = arguments.to_keras
        _check_place("to_keras", target)
        if not target.name.endswith(_ENDINGS):
            raise UserError(f"--to_keras: must end with {' or '.join(_ENDINGS)}, got '{target}'")
        load_tensorflow(Config())
        for line in write_keras(str(arguments.init_checkpoint), target):
            print(line)
        return
    _check_place("out", arguments.out)
    file = None
    if arguments.weights not in (_IMAGENET, _NONE):
        file = WeightsFile(program.path(arguments.weights))
    kind = file.kind if file else Kind(arguments.model, _IMAGENET_CLASSES)
    if kind.architecture is None:
        raise UserError(f"--model: must be given with --weights={arguments.weights}, got none")
    if arguments.model not in (None, kind.architecture):
        raise UserError(
            f"--model: must be {kind.architecture} for '{arguments.weights}', got {arguments.model}"
        )
    load_tensorflow(Config())
    downloads = arguments.weights == _IMAGENET
    model = keras_weights.create_model(kind, weights=_IMAGENET if downloads else None)
    if file:
        file.load(model)
    lines = write_checkpoint(
        model,
        kind,
        arguments.out,
        with_top=not arguments.without_top,
        image_size=arguments.image_size,
        activation=file.activation if file else None,
    )
    for line in lines:
        print(line)


def _check_place(flag: str, path: Path) -> None:
    """Refuses a place where something is, or where TensorFlow can't write."""
    if os.path.lexists(path):
        raise UserError(f"--{flag}: must not be there yet, got '{path}'")
    files.check_writable(path.parent, flag, is_folder=True)
    files.sweep_beside(path)


def write_checkpoint(
    model: Any,
    kind: Kind,
    folder: Path,
    *,
    with_top: bool = True,
    image_size: int = _IMAGE_SIZE,
    activation: str | None = None,
) -> tuple[str, ...]:
    """Writes a checkpoint of a model of Keras, and its model.json; returns what to tell of it.

    Args:
      model: the model.
      kind: what it is.
      folder: the folder to make, which is there whole or not at all.
      with_top: whether to write its last layer, where it has one.
      image_size: height and width of its images, for model.json, pixels.
      activation: what its last layer makes of the logits, for model.json's --loss; None: not known.

    Raises:
      UserError: the checkpoint can't be written.
      OSError: likewise.
    """
    import tensorflow as tf

    from trainer.checkpoints import model_file

    scope = keras_weights.SCOPES[kind.architecture]
    values = keras_weights.read_values(model, scope)
    if not with_top:
        values = {name: value for name, value in values.items() if "/logits/" not in name}
    network = ModelConfig(
        model=f"{_PREFIX}{scope}", batch_norm_epsilon=keras_weights.BATCH_NORM_EPSILON
    )
    # `inception` is what Keras' resnet_v2.preprocess_input does.
    data = DataConfig(image_size=image_size, preprocessing="inception")
    has_top = with_top and kind.num_classes is not None
    is_sigmoid = has_top and activation == "sigmoid"
    loss = OptimizerConfig(loss="sigmoid") if is_sigmoid else OptimizerConfig()
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        try:
            tf.raw_ops.SaveV2(
                prefix=layout.prefix_of(str(temporary), 0),
                tensor_names=list(values),
                shape_and_slices=[""] * len(values),
                tensors=list(values.values()),
            )
        except (tf.errors.OpError, UnicodeError) as error:
            reason = texts.first_line(error)
            raise UserError(f"--out: '{folder}' could not be written ({reason})") from error
        layout.write_state(temporary, [0])
        model_file.write(temporary, Config(model=network, data=data, optimizer=loss), None)
    return (
        f"{layout.prefix_of(str(folder), 0)}: {kind.architecture}, {len(values)} variables, "
        + (f"{kind.num_classes} classes" if has_top else "no last layer"),
        f"  python -m trainer --init_checkpoint={shlex.quote(str(folder))} --model={network.model} "
        f"--batch_norm_epsilon={network.batch_norm_epsilon}"
        + (" --loss=sigmoid" if is_sigmoid else "")
        + " --data_dir=DIR --logdir=DIR",
    )


def write_keras(given: str, target: Path) -> tuple[str, ...]:
    """Writes a checkpoint's weights to a file of Keras; returns what to tell of it.

    Args:
      given: the checkpoint, as --init_checkpoint takes it.
      target: the file, `.keras` or `.weights.h5`, which is there whole or not at all.

    Raises:
      UserError: the checkpoint is missing, damaged, or not of one of these networks.
      OSError: the file can't be written.
    """
    from trainer.checkpoints import model_file, restore, search

    chosen = search.resolve(given)
    reader = restore.open_checkpoint(chosen.prefix)
    shapes = reader.get_variable_to_shape_map()
    scopes = {
        name: scope
        for name, scope in keras_weights.SCOPES.items()
        if f"{scope}/conv1/weights" in shapes
    }
    found = model_file.find(RunConfig(init_checkpoint=given))
    flags: Mapping[str, Any] = {} if found is None else found.flags
    known = [f"{_PREFIX}{scope}" for scope in keras_weights.SCOPES.values()]
    if len(scopes) != 1 or flags.get("model", known[0]) not in known:
        raise UserError(
            f"--init_checkpoint: must be of {' or '.join(known)}, got {chosen.prefix}, which is of "
            f"{flags.get('model', 'another network')}"
        )
    ((architecture, scope),) = scopes.items()
    model = keras_weights.create_model(
        Kind(architecture, restore.find_classes(chosen.prefix)),
        image_size=flags.get("image_size", _IMAGE_SIZE),
        activation="sigmoid" if flags.get("loss") == "sigmoid" else "softmax",
    )
    variables = keras_weights.list_variables(model, scope)
    restore.refuse_differences(
        chosen.prefix,
        [
            f"{name} is {shapes.get(name, 'not there')}, which must be {shape}"
            for name, variable in variables
            if shapes.get(name) != (shape := list(keras_weights.shape_of(name, variable)))
        ],
    )
    keras_weights.assign(model, scope, {name: reader.get_tensor(name) for name, _ in variables})
    with layout.temporary_folder(target.parent) as temporary:
        file = temporary / target.name
        save = model.save if target.suffix == ".keras" else model.save_weights
        save(str(file))
        files.sync(file)
        file.replace(target)
        files.sync(target.parent)
    epsilon = flags.get("batch_norm_epsilon", keras_weights.BATCH_NORM_EPSILON)
    remark = f"; BN's epsilon was {epsilon}, and is {keras_weights.BATCH_NORM_EPSILON} in it"
    return (
        *chosen.remarks,
        f"{target}: {architecture}, {len(variables)} variables of {chosen.prefix}"
        + (remark if epsilon != keras_weights.BATCH_NORM_EPSILON else ""),
    )


if __name__ == "__main__":
    program.run(main)
