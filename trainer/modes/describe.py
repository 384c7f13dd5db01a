"""--mode=describe: prints a network's layers as a table, with shapes, parameters and GFLOP."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

import models
from models.slim_compat import slim
from trainer.config import Config
from trainer.distributed import Worker
from trainer.graph import flops, memory_estimate
from trainer.graph.memory_estimate import TrainingMemory
from trainer.graph.network import check_logits, find_network
from trainer.inputs import synthetic
from trainer.inputs.dataset import DatasetInfo, open_dataset
from trainer.plan import Plan, create_plan
from trainer.process import launcher
from trainer.run import outputs

tf1 = tf.compat.v1

_NORMALIZATION = "FusedBatchNormV3"
_UNIT = "/bottleneck_v2"
_STAGES = ("conv1", "conv2", "conv3")

Shape = tuple[int | None, ...]  # Of one example: height, width, channels; or channels alone.


@dataclasses.dataclass(frozen=True)
class Layer:
    """A row: a residual unit, or a scope with a convolution, matrix product or parameters.

    Attributes:
      scope: name of the variable scope.
      input: shape of the input; None where the row has no counted layer and no BN.
      output: shape of the output; None where `input` is.
      shortcut: shape of what a unit adds to its residual; None for other rows.
      stages: shapes of the results of a unit's three convolutions; empty for other rows.
      parameters: number of trainable values.
      gflops: GFLOP of convolutions and matrix products, per image, forward.
    """

    scope: str
    input: Shape | None
    output: Shape | None
    shortcut: Shape | None
    stages: tuple[Shape, ...]
    parameters: int
    gflops: float


class Description(NamedTuple):
    """A network's layers, in the order in which it builds them."""

    model: str
    image_size: int
    num_classes: int
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def gflops_per_image(self) -> float:
        """GFLOP of convolutions and matrix products, per image, forward."""
        return sum(layer.gflops for layer in self.layers)


def describe(network: models.Network, *, image_size: int, num_classes: int) -> Description:
    """Builds a network for one image, in a graph of its own, and reads the layers off the graph.

    Args:
      network: any network.
      image_size: height and width of the image, pixels.
      num_classes: number of logits.
    """
    with tf.Graph().as_default() as network_graph:
        images = tf1.placeholder(tf.float32, [1, image_size, image_size, 3], name="images")
        with slim.arg_scope(network.arg_scope_fn(is_training=False)):
            logits, end_points = network.fn(images, num_classes=num_classes, is_training=False)
        check_logits(network.name, logits, num_classes)
        units = {name: end_points[name] for name in end_points if name.endswith(_UNIT)}
        parameters = {
            variable.op.name: variable.shape.num_elements()
            for variable in tf1.trainable_variables()
        }
    scopes = {
        op: _own_scope(op, parameters)
        for op in network_graph.get_operations()
        if op.name in parameters or op.type == _NORMALIZATION or flops.count_op_flops(op)
    }
    convolution_scopes = {scope for op, scope in scopes.items() if flops.count_op_flops(op)}
    rows: dict[str, list[tf.Operation]] = {}
    for op, scope in scopes.items():
        row = next((unit for unit in units if scope.startswith(unit + "/")), scope)
        parent = scope.rpartition("/")[0]
        if row == scope and scope not in convolution_scopes and parent in convolution_scopes:
            row = parent  # BN of a convolution, whose scope lies within the convolution's.
        rows.setdefault(row, []).append(op)
    layers = tuple(_create_layer(row, rows[row], parameters, units.get(row)) for row in rows)
    return Description(network.name, image_size, num_classes, layers)


def _own_scope(op: tf.Operation, parameters: Mapping[str, int]) -> str:
    """Returns the scope of the variable that an operation uses or is; else its own name's scope."""
    name = op.name
    for tensor in op.inputs[1:]:
        source = tensor.op
        while source.type in ("ReadVariableOp", "Identity", "Cast"):
            source = source.inputs[0].op
        if source.name in parameters:
            name = source.name
            break
    return name.rpartition("/")[0]


def _create_layer(
    scope: str,
    operations: Sequence[tf.Operation],
    parameters: Mapping[str, int],
    unit_output: tf.Tensor | None,
) -> Layer:
    """Creates a row from its operations: variables, convolutions, products and BN, as built."""
    counted = [op for op in operations if op.name not in parameters]
    input_shape = output_shape = shortcut = None
    stages: tuple[Shape, ...] = ()
    if counted:
        input_shape = _shape(_data_input(counted[0]))
        output_shape = _shape(counted[-1].outputs[0])
    convolutions = {_own_scope(op, parameters): op for op in counted}
    names = [f"{scope}/{stage}" for stage in _STAGES]
    # A network of one's own may call something else a unit.
    if unit_output is not None and all(name in convolutions for name in names):
        # A unit's result is `shortcut + residual`.
        shortcut = _shape(unit_output.op.inputs[0])
        stages = tuple(_shape(convolutions[name].outputs[0]) for name in names)
        output_shape = _shape(unit_output)
    return Layer(
        scope=scope,
        input=input_shape,
        output=output_shape,
        shortcut=shortcut,
        stages=stages,
        parameters=sum(parameters.get(op.name, 0) for op in operations),
        gflops=flops.count_flops(operations) / 1e9,
    )


def _data_input(op: tf.Operation) -> tf.Tensor:
    """Returns what a layer's operation gets from the layer before it."""
    # A transposed convolution is a Conv2DBackpropInput, whose third input that is.
    tensor = op.inputs[2 if op.type == "Conv2DBackpropInput" else 0]
    return tensor.op.inputs[0] if tensor.op.type == "Pad" else tensor


def _shape(tensor: tf.Tensor) -> Shape:
    return tuple(tensor.shape.as_list()[1:])


def format_table(description: Description) -> str:
    """Returns the description as lines of text; maps are written as height x width x channels."""
    has_units = any(layer.stages for layer in description.layers)
    stages = ("shortcut", *_STAGES) if has_units else ()
    rows = [("layer", "input", *stages, "output", "parameters", "GFLOP")]
    for layer in description.layers:
        trace = (layer.shortcut, *(layer.stages or (None,) * len(_STAGES))) if has_units else ()
        shapes = map(_format_shape, (layer.input, *trace, layer.output))
        # All names begin with the network's scope, and all units' end with the same one.
        name = layer.scope.partition("/")[2].removesuffix(_UNIT) or layer.scope or "."
        rows.append((name, *shapes, f"{layer.parameters:,}", f"{layer.gflops:.3f}"))
    totals = (f"{description.parameters:,}", f"{description.gflops_per_image:.3f}")
    rows.append(("total", *[""] * (len(rows[0]) - 3), *totals))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _format_shape(shape: Shape | None) -> str:
    return "-" if shape is None else "x".join("?" if size is None else str(size) for size in shape)


def _describe_memory(config: Config, memory: TrainingMemory) -> str:
    """Returns a line about what training with the configuration's flags keeps in memory."""
    data, update = config.data, config.optimizer
    parts = [
        (
            f"activations of {data.batch_size} images in {config.model.precision}",
            memory.activations,
        ),
        ("variables", memory.variables),
        ("gradients", memory.gradients),
        (f"slots of {update.optimizer}", memory.slots),
        ("averages", memory.averages),
        ("sums of --accumulate_steps", memory.sums),
    ]
    told = " + ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts if size)
    again = ""
    if memory.recomputed:
        mib = memory.recomputed / 2**20
        again = f" (up to {mib:,.0f} by --recompute={config.model.recompute})"
    return (
        f"training keeps at least {memory.total / 2**20:,.0f} MiB per worker: {told}; libraries, "
        f"the input and what lives shortly{again} come on top"
    )


def _open_data(config: Config) -> DatasetInfo | None:
    """Returns what the flags' data are; None where they name none."""
    if config.data.data_dir is None and config.data.dataset in (None, synthetic.NAME):
        return None
    return open_dataset(config.data, num_classes=config.model.num_classes).info


def _find_classes(config: Config, info: DatasetInfo | None) -> tuple[int, str]:
    """Returns the network's number of classes, and where it is from."""
    if config.model.num_classes is not None:
        return config.model.num_classes, "--num_classes"
    if info is not None:
        return info.num_classes, f"as many as {info.name} has"
    return synthetic.DEFAULT_CLASSES, "assumed: neither --num_classes nor data are given"


def _create_plan(config: Config, info: DatasetInfo | None) -> tuple[Plan, str]:
    """Returns the plan of a run of one worker, and what its data are called."""
    batch_size = config.data.batch_size * config.optimizer.accumulate_steps
    examples, name = synthetic.IMAGENET_EXAMPLES, "ImageNet"
    if info is not None:
        examples, name = info.num_train_examples, info.name
    plan = create_plan(
        config.run,
        global_batch_size=batch_size,
        train_examples=max(1, examples),
        validation_examples=0,
    )
    return plan, f"{name}'s {examples:,} training images"


def run(config: Config) -> int:
    """Prints the table of the configured network, and writes it to --result_json.

    The result there has `model`, `image_size`, `num_classes` (the data's where none are given, 1000
    without data), `layers` (the rows), `parameters`, `gflops_per_image`, `training_bytes` (what
    training with these flags keeps in memory, by kind), `train_examples` (null without data),
    `steps` and `epochs` of a run of one worker.

    Raises:
      ConfigError: there is no such network, or its images must be larger.
    """
    launcher.refuse(config.mode)
    outputs.check_places(config, Worker(), logs=False)
    network = find_network(config.model, config.data.image_size)
    info = _open_data(config)
    num_classes, origin = _find_classes(config, info)
    description = describe(network, image_size=config.data.image_size, num_classes=num_classes)
    memory = memory_estimate.estimate(config, description.num_classes)
    plan, data = _create_plan(config, info)
    steps, epochs = plan.total_steps, plan.epoch_at(plan.total_steps)
    length = (
        f"a run of one worker has {steps:,} steps of {plan.global_batch_size} images: {epochs:.1f} "
        f"epochs of {data}; with n workers the same epochs take a n-th of the steps"
    )
    total = (
        f"{description.model} at {description.image_size} px with {description.num_classes} "
        f"classes ({origin}): {description.parameters:,} parameters, "
        f"{description.gflops_per_image:.2f} GFLOP per image forward (2 x multiply-adds)"
    )
    result = {
        "model": description.model,
        "image_size": description.image_size,
        "num_classes": description.num_classes,
        "layers": [dataclasses.asdict(layer) for layer in description.layers],
        "parameters": description.parameters,
        "gflops_per_image": description.gflops_per_image,
        "training_bytes": dataclasses.asdict(memory),
        "train_examples": None if info is None else info.num_train_examples,
        "steps": steps,
        "epochs": epochs,
    }
    lines = (format_table(description), total, _describe_memory(config, memory), length)
    outputs.report(config, Worker(), result, text="\n".join(lines))
    return 0
