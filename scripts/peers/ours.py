"""A contestant of compare_peers.py: this project's resnet_v2_50, as the benchmark runs it.

usage: python -m peers.ours plain|xla
"""

import functools
import sys

from peers.protocol import Case, Prepared, serve
from trainer.config import Config, DataConfig, ModelConfig
from trainer.machine.loading import load_tensorflow
from trainer.process import settings

_PASSES = {"forward": "forward", "train": "train_step"}


def prepare(case: Case, *, xla: bool) -> Prepared:
    """Builds the pass that --benchmark_passes would time."""
    data = DataConfig(dataset="synthetic", batch_size=case.batch_size, image_size=case.image_size)
    model = ModelConfig(precision=case.precision, xla=xla)
    config = Config(mode="benchmark", data=data, model=model)
    import tensorflow as tf
    import tensorflow.compat.v1 as tf1

    from trainer import distributed
    from trainer.benchmark import passes
    from trainer.graph.initial_values import build_initializer
    from trainer.inputs.dataset import open_dataset
    from trainer.machine import session

    with tf.Graph().as_default():
        target = passes.PASSES[_PASSES[case.task]](
            config, distributed.Group(), open_dataset(data, num_classes=None)
        )
        run = session.open_session(model=model)
        run.run(build_initializer())
        run.run(target.begin)
        run.run(target.stream.initializer, {target.stream.start_step: 0})
        parameters = sum(v.shape.num_elements() for v in tf1.trainable_variables())
    step = run.make_callable(target.fetch, list(target.feeds))
    return Prepared(
        step=functools.partial(step, *target.feeds.values()),
        parameters=parameters,
        gflops_per_image=target.flops / case.batch_size / 1e9,
    )


if __name__ == "__main__":
    settings.restart_with_settings()  # As `python -m trainer` does, which has no Keras either.
    load_tensorflow(Config())
    serve(functools.partial(prepare, xla=sys.argv[1] == "xla"))
