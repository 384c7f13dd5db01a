"""--mode=evaluate: evaluates a checkpoint on all validation examples, each of which counts once."""

import contextlib
import dataclasses
from pathlib import Path

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer import distributed
from trainer.checkpoints import restore, search
from trainer.config import Config
from trainer.errors import ConfigError, UserError
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs import synthetic
from trainer.inputs.dataset import DatasetInfo, open_dataset
from trainer.machine.session import create_config
from trainer.run import outputs
from trainer.run.evaluation import evaluate, write_scalars
from trainer.safety import agreement
from trainer.safety.protection import watch
from trainer.safety.shortage import explain_shortage
from trainer.telemetry import tags
from trainer.telemetry.pages.evaluation_views import create_evaluation_views
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.run_writer import create_writer


def run(config: Config) -> int:
    """Evaluates --init_checkpoint, or the newest good checkpoint in --logdir."""
    group = distributed.connect(config)
    with group.fail_together():
        config, is_described, class_names, remarks = outputs.as_trained(config)
        prefix, skipped = search.choose(config.run)
    with group.explain_loss():
        # A run may save another checkpoint at this moment: rank 0's choice is everyone's.
        prefix = group.gather(prefix)[0]
        agreement.check_program(group, config)
        of_network = {f"class {n} of the network": name for n, name in enumerate(class_names or ())}
        agreement.check(group, of_network)
    with group.fail_together(), explain_shortage(config, trains=False):
        outputs.check_places(config, group.worker)
        num_classes = config.model.num_classes or restore.count_classes(prefix)
        dataset = open_dataset(
            config.data,
            num_classes=num_classes,
            class_names=class_names,
            is_network_foreign=not is_described,
        )
        _check_examples(config, dataset.info)
        outputs.remark(*skipped, *remarks, *dataset.remarks)
        with tf.Graph().as_default():
            graph = build_evaluation_graph(config, group, dataset)
            session = tf1.Session(
                config=create_config(
                    local_rank=group.worker.local_rank,
                    local_size=group.worker.local_size,
                    model=config.model,
                )
            )
            restore.restore_weights(session, prefix, restore.network_variables(), new_logits=False)
            session.graph.finalize()
    with group.explain_loss():
        agreement.check_data(group, dataset.info)
    # Weights of --init_checkpoint are not those of the run in --logdir: nothing is logged there.
    logdir = config.run.logdir if config.run.init_checkpoint is None else None
    with (
        session,
        group.explain_loss(),
        explain_shortage(config, trains=False),
        watch(config.run, group.worker) as watchdog,
        contextlib.closing(create_writer(logdir, rank=group.worker.rank)) as writer,
    ):
        names = dataset.info.names_of_classes
        views = create_evaluation_views(logdir, group.worker, writer, names)
        result = evaluate(session, graph, group, views, after_batch=watchdog.finish_step)
        step = search.step_of(prefix)
        num_classes = dataset.info.num_classes
        text = f"{prefix}: {result.describe(num_classes)}"
        latest = max(group.gather(_latest_evaluation(logdir)))
        if latest > step:
            # TensorBoard would drop the scalars of later steps that it has.
            text += f"; not in TensorBoard, which has the evaluation after step {latest} already"
        else:
            views.publish(step, group)
            write_scalars(writer, step, result, num_classes=num_classes)
    outputs.report(config, group.worker, dataclasses.asdict(result), text=text)
    group.shutdown()
    return 0


def _check_examples(config: Config, info: DatasetInfo) -> None:
    """Raises UserError where there is nothing to evaluate on."""
    if info.name == synthetic.NAME:
        raise ConfigError(f"--data_dir: must be given with --mode={config.mode}, got none")
    if not info.num_validation_examples:
        raise UserError(
            f"--data_dir: {config.data.data_dir or info.name} has no validation examples. Put them "
            "into validation/ or into shards validation-*, or give --validation_fraction=1 to "
            "evaluate on all of a folder of classes"
        )


def _latest_evaluation(logdir: str | None) -> int:
    """Returns the latest step of the run in `logdir` that was evaluated; -1 where none was."""
    if logdir is None:
        return -1
    return metrics_lines.newest_step(Path(logdir) / metrics_lines.NAME, tags.EVAL_TOP1)
