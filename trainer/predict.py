"""--mode=predict: classifies image files."""

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import checkpoints, graph, results, session
from trainer.config import Config, UserError
from trainer.distributed import Worker
from trainer.inputs.dataset import open_files
from trainer.inputs.device import normalize

_BEST = 5


def run(config: Config) -> int:
    """Prints the most likely classes of each file that the command line names."""
    if not config.files:
        raise UserError("--mode=predict: name at least one image file")
    prefix = checkpoints.choose(config.run)
    num_classes = checkpoints.count_classes(prefix)
    names = results.read_class_names(config.run.logdir) or [str(n) for n in range(num_classes)]
    dataset = open_files(config.files, config.data, num_classes=num_classes)
    with tf.Graph().as_default():
        stream = dataset.build_evaluation(Worker())
        logits = graph.build_logits(
            config.model,
            normalize(stream.batch.images, config.data),
            num_classes=num_classes,
            is_training=False,
        )
        fetches = (tf.nn.softmax(logits), stream.batch.labels, stream.batch.weights)
        with tf1.Session(config=session.create_config()) as predict_session:
            checkpoints.restore_weights(predict_session, prefix, checkpoints.network_variables())
            predict_session.run(stream.initializer, {stream.start_step: 0})
            with graph.explain_errors(stream):
                batches = [predict_session.run(fetches) for _ in range(stream.steps)]
    rows = []
    for probabilities, numbers, weights in batches:
        for row, number in zip(probabilities[weights > 0], numbers[weights > 0], strict=True):
            best = np.argsort(-row, kind="stable")[:_BEST]
            guesses = {names[index]: float(row[index]) for index in best}
            rows.append({"file": config.files[number], "probabilities": guesses})
    lines = [
        f"{row['file']}: " + ", ".join(f"{k} {v:.4f}" for k, v in row["probabilities"].items())
        for row in rows
    ]
    results.report(config, Worker(), {"predictions": rows}, text="\n".join(lines))
    return 0
