"""--mode=evaluate: evaluates a checkpoint on all validation examples, each of which counts once."""

import contextlib
import time
from collections.abc import Iterator, Sequence
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
from trainer.inputs.dataset import AnyDataset, DatasetInfo, SyntheticDataset, open_dataset
from trainer.machine.session import open_session
from trainer.run import outputs
from trainer.run.evaluation import Evaluation, Observer, evaluate, write_scalars
from trainer.run.evaluation_details import EvaluationDetails, EvaluationPredictions
from trainer.run.predictions import check_places, open_files
from trainer.safety import agreement, lock_holder, status
from trainer.safety.protection import watch
from trainer.safety.shortage import explain_shortage
from trainer.telemetry import tags
from trainer.telemetry.pages.evaluation_views import EvaluationViews, create_evaluation_views
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.json_lines import JsonLinesWriter
from trainer.telemetry.writers.run_writer import create_writer

# A run that has not finished, and of which no process is left, may be started again.
_PATIENCE_SEC = 60.0
_LOOK_SEC = 1.0


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
    metrics = logdir / metrics_lines.NAME
    tag = _tag_of(config)
    follower = Follower(logdir, metrics_lines.steps_with(metrics, tag))
    results = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(follower.following())
        evaluator = None
        for step, prefix in _checkpoints(follower, logdir):
            while follower.may_be_last(step) and _goes_on(logdir):
                time.sleep(_LOOK_SEC)  # A run evaluates its last step itself.
            fault = follower.fault_in(step)
            if fault is not None:
                outputs.remark(f"{layout.prefix_of(str(logdir), step)} is damaged ({fault})")
            elif step not in metrics_lines.steps_with(metrics, tag):
                if evaluator is None:
                    evaluator = _Evaluator(config, group, prefix)
                    stack.enter_context(contextlib.closing(evaluator))
                else:
                    evaluator.load(prefix)
                result, text = evaluator.evaluate()
                print(f"{layout.prefix_of(str(logdir), step)}: {text}", flush=True)
                results.append({"step": step, **result})
            follower.drop(step)
    return {"evaluations": results}, f"{len(results)} checkpoints of {logdir} evaluated"


def _checkpoints(follower: Follower, logdir: Path) -> Iterator[tuple[int, str]]:
    """Yields step and prefix of each new checkpoint, until the run has ended."""
    ended_sec: float | None = None
    while True:
        follower.look()
        found = follower.take_next()
        if found is not None:
            yield found
            continue
        if status.read(logdir).state == "finished" and not lock_holder.may_be_alive(logdir):
            follower.look()  # It may have saved between the two looks.
            if (found := follower.take_next()) is None:
                return
            yield found
        elif _goes_on(logdir):
            ended_sec = None
        else:
            now_sec = time.monotonic()
            ended_sec = now_sec if ended_sec is None else ended_sec
            if now_sec - ended_sec > _PATIENCE_SEC:
                return
        time.sleep(_LOOK_SEC)


def _goes_on(logdir: Path) -> bool:
    """Returns whether a run is not complete and has a process, as far as that can be known."""
    return status.read(logdir).state != "finished" and lock_holder.may_be_alive(logdir)


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
            config, is_described, class_names, remarks = outputs.as_trained(config)
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
            outputs.check_places(config, group.worker, logs=self._logdir is not None)
            if group.worker.rank == 0:
                check_places(config.prediction)
            self._dataset = open_dataset(
                config.data,
                num_classes=config.model.num_classes or restore.count_classes(prefix),
                class_names=class_names,
                is_network_foreign=not is_described,
            )
            _check_examples(config, self._dataset.info)
            outputs.remark(*skipped, *remarks, *self._dataset.remarks)
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
            self._is_data_of_run = group.gather(self._has_data_of_run(prefix))[0]
        if not self._is_data_of_run:
            self._logdir = None
        self._writer = create_writer(self._logdir, rank=group.worker.rank)

    def _has_data_of_run(self, prefix: str) -> bool:
        """Returns whether the data are those of the run, as far as its manifest tells."""
        if self._logdir is None:
            return True
        step = search.step_of(prefix)
        for folder in (Path(prefix).parent, Path(self._logdir)):
            entry = checkpoint_manifest.read(folder).find(step)
            if entry is not None:
                return entry.run.fingerprint == self._dataset.info.fingerprint
        return True

    def close(self) -> None:
        """Writes what is left, and gives the session's memory back."""
        self._writer.close()
        self._session.close()

    def load(self, prefix: str) -> None:
        """Loads the weights of a checkpoint."""
        averages = self._config.fine_tuning.init_averages
        restore.restore_weights(self._session, prefix, self._variables, averages=averages)
        self.prefix = prefix

    def evaluate(self) -> tuple[dict[str, Any], str]:
        """Evaluates the checkpoint that is loaded. A collective.

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
            text += self._log(search.step_of(self.prefix), found, views)
            told = details.summarize(group)
        batch_size = config.data.batch_size * group.worker.size
        rate = _images_per_sec(found.count, batch_size, ends_sec)
        return {**found.as_dict(), "images_per_sec": rate, **told}, text

    def _log(self, step: int, found: Evaluation, views: EvaluationViews) -> str:
        """Writes the result of a step's weights, and returns why not. A collective."""
        if not self._is_data_of_run:
            return f"; not logged in {self._config.run.logdir}, whose run has other data"
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
        yield (EvaluationPredictions(group, written, config.data, dataset.name_of_validation),)


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


def _tag_of(config: Config) -> str:
    """Returns the tag of the top-1 that is measured: of the weights, or of their averages."""
    return tags.EVAL_EMA_TOP1 if config.fine_tuning.init_averages else tags.EVAL_TOP1


def _latest_evaluation(logdir: str | None, tag: str) -> int:
    """Returns the latest step of the run in `logdir` that was evaluated; -1 where none was."""
    if logdir is None:
        return -1
    return metrics_lines.newest_step(Path(logdir) / metrics_lines.NAME, tag)
