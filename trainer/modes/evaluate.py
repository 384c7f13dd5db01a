"""--mode=evaluate: evaluates a checkpoint on all validation examples, each of which counts once."""

import contextlib
import dataclasses
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed
from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.errors import UserError
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs.dataset import open_dataset
from trainer.machine.session import create_config
from trainer.run import outputs
from trainer.run.evaluation import evaluate, write_scalars
from trainer.safety.protection import watch
from trainer.telemetry import tags
from trainer.telemetry.pages.evaluation_views import create_evaluation_views
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.run_writer import create_writer


def run(config: Config) -> int:
    """Evaluates --init_checkpoint, or the newest good checkpoint in --logdir."""
    group = distributed.connect(config)
    with group.fail_together():
        config, is_described, class_names, remarks = outputs.as_trained(config)
        prefix = search.choose(config.run)
    with group.explain_loss():
        # A run may save another checkpoint at this moment: rank 0's choice is everyone's.
        prefix = group.gather(prefix)[0]
    with group.fail_together():
        outputs.check_places(config, group.worker)
        num_classes = config.model.num_classes or restore.count_classes(prefix)
        dataset = open_dataset(
            config.data,
            num_classes=num_classes,
            class_names=class_names,
            is_network_foreign=not is_described,
        )
        if not dataset.info.num_validation_examples:
            raise UserError(
                f"--data_dir: {config.data.data_dir or dataset.info.name} has no validation "
                "examples. They belong into validation/, shards validation-*, or are all that is "
                "in a folder of classes with --validation_fraction=1"
            )
        outputs.remark(*remarks, *dataset.remarks)
        with tf.Graph().as_default():
            graph = build_evaluation_graph(config, group, dataset)
            session = tf1.Session(
                config=create_config(
                    local_rank=group.worker.local_rank,
                    local_size=group.worker.local_size,
                    xla=config.model.xla,
                )
            )
            restore.restore_weights(session, prefix, restore.network_variables(), new_logits=False)
            session.graph.finalize()
    # Weights of --init_checkpoint are not those of the run in --logdir: nothing is logged there.
    logdir = config.run.logdir if config.run.init_checkpoint is None else None
    with (
        session,
        group.explain_loss(),
        watch(config.run, group.worker) as watchdog,
        contextlib.closing(create_writer(logdir, rank=group.worker.rank)) as writer,
    ):
        names = dataset.info.names_of_classes
        views = create_evaluation_views(logdir, group.worker, writer, names)
        result = evaluate(session, graph, group, views, after_batch=watchdog.finish_step)
        step = search.step_of(prefix)
        text = f"{prefix}: {result}"
        latest = max(group.gather(_latest_evaluation(logdir)))
        if latest > step:
            # TensorBoard would drop the scalars of later steps that it has.
            text += f"; not in TensorBoard, which has the evaluation after step {latest} already"
        else:
            views.publish(step, group)
            write_scalars(writer, step, result)
    outputs.report(config, group.worker, dataclasses.asdict(result), text=text)
    group.shutdown()
    return 0


def _latest_evaluation(logdir: str | None) -> int:
    """Returns the latest step of the run in `logdir` that was evaluated; -1 where none was."""
    if logdir is None:
        return -1
    return metrics_lines.newest_step(Path(logdir) / metrics_lines.NAME, tags.EVAL_TOP1)
