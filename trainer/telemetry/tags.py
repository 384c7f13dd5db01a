"""The tags of all scalars that a run writes, each in one row of one of two tables.

The step log writes `EVERY_STEP`; those of `OCCASIONAL` are written where their numbers arise. The
Custom Scalars page shows the charts that the rows name. To add a scalar to every step: give
`StepMetrics` a field with its value (graph/train_step.py), and `EVERY_STEP` a row.
"""

import enum
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trainer.graph import accuracy
from trainer.graph.summaries import GRADIENT_NORM, WEIGHT_NORM
from trainer.graph.train_step import StepMetrics
from trainer.telemetry.step import Step


class RunStep(NamedTuple):
    """One step of the whole run, from which its scalars follow.

    Attributes:
      step: the step as rank 0 saw it.
      own_sec: each worker's `Step.own_sec`, in order of rank.
      data_wait_sec: each worker's wait for its input, in order of rank.
      images: number of images of the step, over all workers.
      bad_examples: number of bad examples found up to now, over all workers.
    """

    step: Step
    own_sec: Sequence[float]
    data_wait_sec: Sequence[float]
    images: int
    bad_examples: int

    @property
    def metrics(self) -> StepMetrics:
        """The graph's metrics: means over all workers, but for rank 0's own times."""
        return self.step.metrics

    @property
    def images_per_sec(self) -> float:
        """Throughput of all workers together."""
        return self.images / self.step.duration_sec


class Chart(enum.Enum):
    """The charts of the Custom Scalars page by title, in the page's order.

    The first ones have one line per run, so that many runs can be compared; those of `IN_DETAIL`
    have several.
    """

    THROUGHPUT = "images per second, over all workers"
    STEP_TIME = "time of a step, ms"
    DATA_WAIT = "waiting for data, ms"
    LEARNING_RATE = "learning rate"
    CROSS_ENTROPY = "cross-entropy in training"
    TOP1 = "top-1 in training"
    EVALUATION_LOSS = "cross-entropy in evaluations"
    EVALUATION_TOP1 = "top-1 in evaluations"
    LOSS = "loss"
    ACCURACY = "accuracy"
    WORKERS = "time of a step, and each worker's own part of it, ms"
    PARTS_OF_STEP_TIME = "where the time goes, ms"
    TRAINING_AND_BENCHMARK = "training and its benchmark, ms per step"


IN_DETAIL = frozenset(
    {
        Chart.LOSS,
        Chart.ACCURACY,
        Chart.WORKERS,
        Chart.PARTS_OF_STEP_TIME,
        Chart.TRAINING_AND_BENCHMARK,
    }
)


def _always(run: RunStep) -> bool:
    """Returns that a scalar says something of every step."""
    del run
    return True


def _has_several_workers(run: RunStep) -> bool:
    """Returns whether there are others: the numbers of one worker alone say the same twice."""
    return len(run.own_sec) > 1


class StepTag(NamedTuple):
    """A scalar of every step.

    Attributes:
      name: the tag itself.
      meaning: description in one line.
      value: function that computes the scalar.
      charts: charts that show it; a chart has its tags in the order of the table.
      tells: function that returns whether the scalar says something of a step; it is not written
        for others.
    """

    name: str
    meaning: str
    value: Callable[[RunStep], float]
    charts: tuple[Chart, ...] = ()
    tells: Callable[[RunStep], bool] = _always


class OccasionalTag(NamedTuple):
    """A scalar of some steps.

    Attributes:
      name: the tag itself, or, with a part in angle brackets, a family of tags.
      meaning: description in one line.
      charts: charts that show it, after the scalars of every step.
    """

    name: str
    meaning: str
    charts: tuple[Chart, ...] = ()


EVERY_STEP = (
    StepTag(
        "train/loss",
        "cross-entropy plus weight decay, mean over the batches of all workers",
        lambda run: run.metrics.loss,
        (Chart.LOSS,),
    ),
    StepTag(
        "train/cross_entropy",
        "cross-entropy with label smoothing, mean over the batches of all workers",
        lambda run: run.metrics.cross_entropy,
        (Chart.CROSS_ENTROPY, Chart.LOSS),
    ),
    StepTag(
        "train/weight_decay_loss",
        "weight_decay * sum(w^2) / 2 over the kernels of convolutions and fully connected layers",
        lambda run: run.metrics.weight_decay_loss,
    ),
    StepTag(
        "train/learning_rate",
        "learning rate of the update",
        lambda run: run.step.learning_rate,
        (Chart.LEARNING_RATE,),
    ),
    StepTag(
        "train/gradient_norm",
        "L2 norm of the averaged gradient of all variables",
        lambda run: run.metrics.gradient_norm,
    ),
    StepTag(
        "train/top1",
        "share of images, over all workers, whose label got the highest logit",
        lambda run: run.metrics.top1,
        (Chart.TOP1, Chart.ACCURACY),
    ),
    StepTag(
        "train/loss_scale",
        "loss scale of float16, where it is not 1",
        lambda run: run.metrics.loss_scale,
        tells=lambda run: run.metrics.loss_scale != 1,
    ),
    StepTag(
        "perf/step_time_ms",
        "time from the end of a step to the end of the next, without pauses",
        lambda run: 1000 * run.step.duration_sec,
        (Chart.STEP_TIME, Chart.WORKERS, Chart.TRAINING_AND_BENCHMARK),
    ),
    StepTag(
        "perf/images_per_sec",
        "throughput of all workers together",
        lambda run: run.images_per_sec,
        (Chart.THROUGHPUT,),
    ),
    StepTag(
        "perf/images_per_sec_per_worker",
        "throughput by the number of workers",
        lambda run: run.images_per_sec / len(run.own_sec),
    ),
    StepTag(
        "perf/data_wait_ms",
        "rank 0's wait for its input",
        lambda run: 1000 * run.metrics.data_wait_sec,
        (Chart.PARTS_OF_STEP_TIME, Chart.DATA_WAIT),
    ),
    StepTag(
        "perf/compute_ms",
        "time from then on until rank 0's gradients are ready",
        lambda run: 1000 * (run.step.own_sec - run.metrics.data_wait_sec),
        (Chart.PARTS_OF_STEP_TIME,),
    ),
    StepTag(
        "perf/wait_for_slowest_ms",
        "time from then on until the slowest worker's gradients are ready; not with one worker",
        lambda run: 1000 * (max(run.own_sec) - run.step.own_sec),
        (Chart.PARTS_OF_STEP_TIME,),
        tells=_has_several_workers,
    ),
    StepTag(
        "perf/allreduce_and_update_ms",
        "rest of the step",
        lambda run: 1000 * (run.step.duration_sec - max(run.own_sec)),
        (Chart.PARTS_OF_STEP_TIME,),
    ),
    StepTag(
        "perf/slowest_worker_step_ms",
        "longest time, of any worker, until its gradients are ready",
        lambda run: 1000 * max(run.own_sec),
        (Chart.WORKERS,),
    ),
    StepTag(
        "perf/fastest_worker_step_ms",
        "shortest time, of any worker, until its gradients are ready",
        lambda run: 1000 * min(run.own_sec),
        (Chart.WORKERS,),
    ),
    StepTag(
        "perf/median_worker_step_ms",
        "median of the workers' times until their gradients are ready; not with one worker",
        lambda run: 1000 * statistics.median(run.own_sec),
        tells=_has_several_workers,
    ),
    StepTag(
        "perf/slowest_worker",
        "rank of the worker with the longest time; not with one worker",
        lambda run: run.own_sec.index(max(run.own_sec)),
        tells=_has_several_workers,
    ),
    StepTag(
        "data/bad_examples",
        "number of images that could not be read up to now, over all workers; from the first on",
        lambda run: run.bad_examples,
        tells=lambda run: run.bad_examples > 0,
    ),
)

EVAL_TOP1 = "eval/top1"
EVAL_TOP5 = "eval/top5"
EVAL_LOSS = "eval/loss"
EVAL_EMA_TOP1 = "eval/ema_top1"
EVAL_EMA_LOSS = "eval/ema_loss"
CHECKPOINT_MS = "perf/checkpoint_ms"
CHECKPOINT_WRITE_MS = "perf/checkpoint_write_ms"
EVALUATION_MS = "perf/evaluation_ms"
REPORT_MS = "perf/report_ms"
HISTOGRAMS_MS = "perf/histograms_ms"
PROFILE_MS = "perf/profile_ms"
PEAK_RESIDENT_MIB = "perf/peak_resident_mib"
PEAK_DEVICE_MIB = "perf/peak_device_mib"
GPU_UTILIZATION = "perf/gpu_utilization_percent"
GPU_POWER = "perf/gpu_power_watts"
GPU_MEMORY = "perf/gpu_memory_mib"
LEAST, MOST = "_least", "_most"  # Of all workers, behind a tag of the GPUs.
MEAN_IMAGES_PER_SEC = "perf/mean_images_per_sec"

OCCASIONAL = (
    OccasionalTag(
        EVAL_TOP1, "share of all validation examples", (Chart.EVALUATION_TOP1, Chart.ACCURACY)
    ),
    OccasionalTag(
        EVAL_TOP5,
        "share whose label is among the five highest logits; not with five classes or fewer",
        (Chart.ACCURACY,),
    ),
    OccasionalTag(
        EVAL_LOSS, "mean cross-entropy of an evaluation", (Chart.EVALUATION_LOSS, Chart.LOSS)
    ),
    OccasionalTag(
        EVAL_EMA_TOP1,
        "share of all validation examples, with the averaged weights of --ema_decay",
        (Chart.ACCURACY,),
    ),
    OccasionalTag(
        EVAL_EMA_LOSS,
        "mean cross-entropy of an evaluation with the averaged weights",
        (Chart.LOSS,),
    ),
    OccasionalTag(CHECKPOINT_MS, "pause for a checkpoint"),
    OccasionalTag(
        CHECKPOINT_WRITE_MS,
        "time from the pause for a checkpoint to its being on disk; at the step in which that was",
    ),
    OccasionalTag(EVALUATION_MS, "pause for an evaluation"),
    OccasionalTag(REPORT_MS, "pause for the exchange of the workers' times"),
    OccasionalTag(HISTOGRAMS_MS, "pause for the histograms of the weights"),
    OccasionalTag(PROFILE_MS, "pause for the start or the end of a trace"),
    OccasionalTag(PEAK_RESIDENT_MIB, "most main memory that any worker has used up to now"),
    OccasionalTag(PEAK_DEVICE_MIB, "most memory of a GPU that any worker has used up to now"),
    *(
        OccasionalTag(f"{tag}{of}", f"{meaning}, {of_what} of the workers' GPUs")
        for tag, meaning in (
            (GPU_UTILIZATION, "share of the time in which a kernel ran"),
            (GPU_POWER, "power draw"),
            (GPU_MEMORY, "memory in use, by all processes"),
        )
        for of, of_what in (("", "mean"), (LEAST, "least"), (MOST, "most"))
    ),
    OccasionalTag(MEAN_IMAGES_PER_SEC, "throughput of a whole run, at its end"),
    OccasionalTag(f"{GRADIENT_NORM}/<variable>", "L2 norm of a gradient, with its histogram"),
    OccasionalTag(f"{WEIGHT_NORM}/<variable>", "L2 norm of a variable, with its histogram"),
    OccasionalTag("benchmark/<pass>/step_time_ms", "time of each timed run of a pass"),
    OccasionalTag("benchmark/<pass>/images_per_sec", "throughput of each timed run of a pass"),
    OccasionalTag(
        "benchmark/train_step/step_time_ms",
        "time of each timed run of the training step",
        (Chart.TRAINING_AND_BENCHMARK,),
    ),
)


def tells_top5(num_classes: int) -> bool:
    """Returns whether the top-5 of so many classes says something: of five, it is always 1."""
    return num_classes > accuracy.BEST


def list_names(chart: Chart) -> list[str]:
    """Returns the tags that a chart shows."""
    rows: tuple[StepTag | OccasionalTag, ...] = (*EVERY_STEP, *OCCASIONAL)
    return [row.name for row in rows if chart in row.charts]
