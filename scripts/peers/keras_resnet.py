"""A contestant of compare_peers.py: Keras' ResNet50V2 on the same TensorFlow.

usage: python -m peers.keras_resnet plain|jit

Tuned as a good user would: the step is one tf.function with its input on the device, bfloat16 by
Keras' own mixed-precision policy, and jit_compile on or off.
"""

import functools
import sys

import keras
import tensorflow as tf

from peers.protocol import Case, Prepared, serve
from trainer.graph import flops


def prepare(case: Case, *, jit: bool) -> Prepared:
    """Builds the model and the step."""
    keras.backend.clear_session()
    keras.mixed_precision.set_global_policy(
        "float32" if case.precision == "float32" else "mixed_bfloat16"
    )
    model = keras.applications.ResNet50V2(
        weights=None, input_shape=(case.image_size,) * 2 + (3,), classifier_activation=None
    )
    images = tf.random.uniform([case.batch_size, case.image_size, case.image_size, 3], -1, 1)
    labels = tf.random.uniform([case.batch_size], maxval=1000, dtype=tf.int32)
    if case.task == "forward":

        def compute() -> tf.Tensor:
            return tf.reduce_max(model(images, training=False))

    else:
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=1e-4)
        optimizer.build(model.trainable_variables)
        loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def compute() -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = loss_fn(labels, tf.cast(model(images, training=True), tf.float32))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

    graph = tf.function(compute).get_concrete_function().graph
    work = flops.count_flops(flops.list_needed_operations(tensor.op for tensor in graph.outputs))
    step = tf.function(compute, jit_compile=jit)
    return Prepared(
        step=lambda: step().numpy(),
        parameters=model.count_params()
        - sum(v.numpy().size for v in model.non_trainable_variables),
        gflops_per_image=work / case.batch_size / 1e9,
    )


if __name__ == "__main__":
    serve(functools.partial(prepare, jit=sys.argv[1] == "jit"))
