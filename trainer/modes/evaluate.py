"""--mode=evaluate: evaluates a checkpoint on all validation examples, each of which counts once."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import distributed
from trainer.checkpoints import layout, restore, search
from trainer.checkpoints import manifest as checkpoint_manifest
from trainer.checkpoints.follow import Follower
from trainer.config import Config
from trainer.distributed import Group
from trainer.errors import ConfigError, UserError
from trainer.graph.evaluation import build_evaluation_graph
from trainer.inputs import synthetic
from trainer.inputs.class_names import describe_names
from trainer.inputs.dataset import AnyDataset, DatasetInfo, SyntheticDataset, open_dataset
from trainer.machine.session import open_session
from trainer.process import files
from trainer.run import outputs
from trainer.run.evaluation import Evaluation, Observer, evaluate, write_scalars
from trainer.run.evaluation_details import EvaluationDetails, EvaluationPredictions
from trainer.run.followed_run import FollowedRun
from trainer.run.predictions import check_places, open_files
from trainer.safety import agreement
from trainer.safety.protection import watch
from trainer.safety.shortage import explain_shortage
from trainer.telemetry import tags
from trainer.telemetry.pages.evaluation_views import EvaluationViews, create_evaluation_views
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.json_lines import JsonLinesWriter
from trainer.telemetry.writers.run_writer import create_writer


def run(config: Config) -> int:
    """Evaluates the checkpoint that is named, or the newest good one in --logdir."""
    group = distributed.connect(config)
    if config.run.follow:
        if group.worker.size > 1:
            raise ConfigError(f"--follow: must be run as one process, got {group.worker.size}")
        result, text = _follow(config, Path(config.run.logdir or ""), group)
    else:
        with group.fail_together():
            prefix, skipped = search.choose(config.run)
        with contextlib.closing(_Evaluator(config, group, prefix, skipped)) as evaluator:
            result, text = evaluator.evaluate()
            text = f"{evaluator.prefix}: {text}"
    outputs.report(config, group.worker, result, text=text)
    group.shutdown()
    return 0


def _follow(config: Config, logdir: Path, group: Group) -> tuple[dict[str, Any], str]:
    """Evaluates each checkpoint of a run that was not; returns the results, and the last line."""
    if config.data.data_dir is None and config.data.dataset in (None, synthetic.NAME):
        raise ConfigError(
            "--data_dir: must be given with --follow before the run has begun, got none; later, "
            "the run's folder tells"
        )
    fault = _find_log_fault(logdir)
    if fault is not None:
        raise UserError(f"--logdir: must be writable with --follow, got {logdir}, {fault}")
    run, follower = FollowedRun(logdir), Follower(logdir)
    results, count = [], 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(follower.following())
        evaluator = None
        for step, prefix in run.checkpoints(follower):
            run.wait_until_left(step)
            name = layout.prefix_of(str(logdir), step)
            fault = follower.fault_in(step)
            if fault is not None:
                outputs.remark(f"{name} is damaged ({fault})")
                follower.drop(step)
                continue
            if evaluator is None:
                evaluator = _Evaluator(config, group, prefix)
                stack.enter_context(contextlib.closing(evaluator))
            if not evaluator.is_logged or step not in run.evaluated_steps(_tag_of(config)):
                evaluator.load(prefix)
                keep = functools.partial(_keep_if_best, follower, step)
                result, text = evaluator.evaluate(keep=keep)
                print(f"{name}: {text}", flush=True)
                count += 1
                if config.run.result_json is not None:
                    results.append({"step": step, **result})
            follower.drop(step)
    return {"evaluations": results}, f"{count} checkpoints of {logdir} evaluated"


def _keep_if_best(follower: Follower, step: int, top1: float) -> str:
    """Keeps a checkpoint that is the run's best one so far; returns why it could not."""
    try:
        follower.keep_if_best(step, top1)
    except OSError as error:
        return f"; the best was not kept ({error})"
    return ""


class _Evaluator:
    """A graph and a session, in which one checkpoint after the other can be evaluated.

    Attributes:
      prefix: prefix of the checkpoint that is loaded.
    """

    def __init__(
        self, config: Config, group: Group, prefix: str, skipped: Sequence[str] = ()
    ) -> None:
        """Opens the data, and builds the graph for a checkpoint. A collective.

        Args:
          config: configuration of the evaluation.
          group: the workers.
          prefix: prefix of the first checkpoint.
          skipped: lines about newer checkpoints that are damaged.
        """
        with group.fail_together():
            trained = outputs.as_trained(config)
        config, class_names = trained.config, trained.class_names
        with group.explain_loss():
            # A run may save another checkpoint at this moment: rank 0's choice is everyone's.
            prefix = group.gather(prefix)[0]
            agreement.check_program(group, config)
            names = {f"class {n} of the network": name for n, name in enumerate(class_names or ())}
            agreement.check(group, names)
        self._config, self._group = config, group
        # Weights of another run are not those of the run in --logdir: nothing is logged there.
        self._logdir = config.run.logdir if config.run.uses_own_checkpoint else None
        with group.fail_together(), explain_shortage(config, trains=False):
            outputs.check_places(config, group.worker, logs=False)
            if group.worker.rank == 0:
                check_places(config.prediction)
            num_classes = restore.count_classes(prefix, config.model.num_classes)
            self._dataset = open_dataset(
                config.data,
                num_classes=num_classes,
                class_names=class_names,
                is_network_foreign=not trained.is_described,
            )
            _check_examples(config, self._dataset.info)
            unnamed = describe_names(class_names, num_classes)
            outputs.remark(*skipped, *trained.remarks, *unnamed, *self._dataset.remarks)
            with tf.Graph().as_default() as main_graph:
                self._graph = build_evaluation_graph(config, group, self._dataset)
                self._variables = restore.network_variables()
                self._session = open_session(
                    local_rank=group.worker.local_rank,
                    local_size=group.worker.local_size,
                    model=config.model,
                )
                self.load(prefix)
                main_graph.finalize()
        with group.explain_loss():
            agreement.check_data(group, self._dataset.info)
            self._unlogged = group.gather(self._reason_not_to_log(prefix, trained.changed))[0]
        if self._unlogged is not None:
            self._logdir = None
        self._writer = create_writer(self._logdir, rank=group.worker.rank)

    @property
    def is_logged(self) -> bool:
        """Returns whether accuracies count as those of the run in --logdir."""
        return self._logdir is not None

    def _reason_not_to_log(self, prefix: str, changed: Sequence[str]) -> str | None:
        """Returns why the run in --logdir gets no evaluation, as rank 0 sees it; None: it does.

        Args:
          prefix: prefix of a checkpoint of the run.
          changed: flags of the run's network that have other values here.
        """
        if self._logdir is None or self._group.worker.rank != 0:
            return None
        if changed:
            return f"whose run has {' '.join(changed)}"
        step = search.step_of(prefix)
        for folder in (Path(prefix).parent, Path(self._logdir)):
            manifest = checkpoint_manifest.read(folder)
            # Of a checkpoint that the run has removed, it knows nothing; its data stay the same.
            entry = manifest.find(step) or (manifest.entries[-1] if manifest.entries else None)
            if entry is not None:
                if entry.run.fingerprint != self._dataset.info.fingerprint:
                    return "whose run has other data"
                break
        return _find_log_fault(Path(self._logdir))

    def close(self) -> None:
        """Writes what is left, and gives the session's memory back."""
        self._writer.close()
        self._session.close()

    def load(self, prefix: str) -> None:
        """Loads the weights of a checkpoint."""
        averages = self._config.fine_tuning.init_averages
        restore.restore_weights(self._session, prefix, self._variables, averages=averages)
        self.prefix = prefix

    def evaluate(self, *, keep: Callable[[float], str] | None = None) -> tuple[dict[str, Any], str]:
        """Evaluates the checkpoint that is loaded. A collective.

        Args:
          keep: the function that gets the top-1 of the run's own weights, and returns what the line
            has to say of it.

        Returns:
          the result for --result_json (see docs/evaluating.md), and a line about it.
        """
        config, group, info = self._config, self._group, self._dataset.info
        details = EvaluationDetails(info)
        ends_sec = [time.perf_counter()]
        with (
            group.explain_loss(),
            explain_shortage(config, trains=False),
            watch(config.run, group.worker) as watchdog,
            _predictions(config, group, self._dataset) as predictions,
        ):

            def after_batch(number: int) -> None:
                watchdog.finish_step(number)
                ends_sec.append(time.perf_counter())

            names = info.names_of_classes
            views = create_evaluation_views(self._logdir, group.worker, self._writer, names)
            observers: tuple[Observer, ...] = (views, details, *predictions)
            found = evaluate(self._session, self._graph, group, *observers, after_batch=after_batch)
            text = "averaged weights: " if config.fine_tuning.init_averages else ""
            text += found.describe(info.num_classes)
            if keep is not None and self.is_logged and not config.fine_tuning.init_averages:
                # First: what is logged is not evaluated again by what follows a killed follower.
                text += keep(found.top1)
            text += self._log(search.step_of(self.prefix), found, views)
            told = details.summarize(group)
        batch_size = self._graph.stream.batch.labels.shape[0] * group.worker.size
        rate = _images_per_sec(found.count, batch_size, ends_sec)
        return {**found.as_dict(), "images_per_sec": rate, **told}, text

    def _log(self, step: int, found: Evaluation, views: EvaluationViews) -> str:
        """Writes the result of a step's weights, and returns why not. A collective."""
        if self._unlogged is not None:
            return f"; not logged in {self._config.run.logdir}, {self._unlogged}"
        num_classes = self._dataset.info.num_classes
        averages = self._config.fine_tuning.init_averages
        latest = max(self._group.gather(_latest_evaluation(self._logdir, _tag_of(self._config))))
        if latest > step:
            # TensorBoard would drop the scalars of later steps that it has.
            if self._logdir is not None and self._group.worker.rank == 0:
                path = Path(self._logdir) / metrics_lines.NAME
                try:
                    with contextlib.closing(JsonLinesWriter(path)) as lines:
                        write_scalars(
                            lines, step, found, num_classes=num_classes, of_averages=averages
                        )
                except OSError as error:
                    return f"; not logged, since {path} could not be written ({error.strerror})"
            return f"; not in TensorBoard, which has the evaluation after step {latest} already"
        views.publish(step, self._group)
        write_scalars(self._writer, step, found, num_classes=num_classes, of_averages=averages)
        self._writer.flush()
        return ""


def _images_per_sec(count: int, global_batch_size: int, ends_sec: Sequence[float]) -> float:
    """Returns the throughput of all workers, without the first batch where there are others.

    Args:
      count: number of examples.
      global_batch_size: number of examples of a batch, over all workers.
      ends_sec: time at the beginning, and at the end of each batch.
    """
    if len(ends_sec) > 2:
        count, ends_sec = count - global_batch_size, ends_sec[1:]
    return max(0, count) / (ends_sec[-1] - ends_sec[0])


@contextlib.contextmanager
def _predictions(
    config: Config, group: Group, dataset: AnyDataset
) -> Iterator[tuple[EvaluationPredictions, ...]]:
    """Yields what writes the predictions, where they are wanted; rank 0 alone has files."""
    if not config.prediction.is_wanted or isinstance(dataset, SyntheticDataset):
        yield ()
        return
    names = dataset.info.names_of_classes
    with contextlib.ExitStack() as stack:
        written = None
        if group.worker.rank == 0:
            written = stack.enter_context(open_files(config.prediction, names, is_labelled=True))
        count = dataset.info.num_validation_examples
        yield (EvaluationPredictions(group, written, count, dataset.name_of_validation),)


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


def _find_log_fault(logdir: Path) -> str | None:
    """Returns why evaluations can't be logged in a run's folder; None where they can.

    They may be where there is no folder yet.
    """
    try:
        logdir.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"which can't be read ({error.strerror})"
    fault = files.find_write_error(logdir, is_folder=True)
    if fault is not None:
        return f"which can't be written ({fault.strerror})"
    metrics = logdir / metrics_lines.NAME
    if metrics.exists() and not os.access(metrics, os.W_OK):
        return f"whose {metrics_lines.NAME} can't be written"
    return None


def _tag_of(config: Config) -> str:
    """Returns the tag of the top-1 that is measured: of the weights, or of their averages."""
    return tags.EVAL_EMA_TOP1 if config.fine_tuning.init_averages else tags.EVAL_TOP1


def _latest_evaluation(logdir: str | None, tag: str) -> int:
    """Returns the latest step of the run in `logdir` that was evaluated; -1 where none was."""
    if logdir is None:
        return -1
    return metrics_lines.newest_step(Path(logdir) / metrics_lines.NAME, tag)
