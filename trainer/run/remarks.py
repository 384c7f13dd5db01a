"""Remarks of a run before its first step: what its data lack, and which flags have no effect."""

from collections.abc import Sequence

from trainer.config import Config, TelemetryConfig
from trainer.distributed import Group
from trainer.graph import moving_statistics
from trainer.graph.selection import Selection
from trainer.inputs import synthetic
from trainer.inputs.dataset import AnyDataset, DatasetInfo
from trainer.plan import Plan


def describe_data(dataset: AnyDataset) -> tuple[str, ...]:
    """Returns what the user has to be told of the data."""
    info = dataset.info
    if info.name == synthetic.NAME:
        return (
            *dataset.remarks,
            "the data are one batch of random images, for timing (--steps: how long); give "
            "--data_dir=DIR to train on images",
        )
    lines = [*dataset.remarks]
    if info.num_classes == 1:
        lines.append("there is one class: nothing is learned, since each answer is right")
    if not info.num_validation_examples:
        lines.append("there are no validation examples: nothing is evaluated")
    return tuple(lines)


def describe_goal(config: Config, info: DatasetInfo) -> tuple[str, ...]:
    """Returns a line where --stop_at_top1 can't be met."""
    if config.run.stop_at_top1 is None or info.num_validation_examples:
        return ()
    return ("--stop_at_top1 changes nothing: there are no validation examples",)


def describe_norms(config: Config, group: Group, variables: Sequence[str]) -> tuple[str, ...]:
    """Returns lines where flags of BN have nothing to do, or nothing to stand on."""
    lines = []
    if not moving_statistics.are_among(variables):
        return tuple(
            f"--{name} changes nothing: the network has no BN"
            for name, is_given in (
                ("sync_batch_norm", config.model.sync_batch_norm),
                ("freeze_batch_norm", config.fine_tuning.freeze_batch_norm),
            )
            if is_given
        )
    if config.model.sync_batch_norm and group.worker.size == 1:
        lines.append("--sync_batch_norm changes nothing: there is one worker")
    elif config.model.sync_batch_norm and Selection(config.fine_tuning).freezes_all(variables):
        lines.append("--sync_batch_norm changes nothing: --freeze_batch_norm freezes all BN")
    if config.fine_tuning.freeze_batch_norm and config.run.init_checkpoint is None:
        lines.append(
            "--freeze_batch_norm keeps BN's statistics at their initial values, unless the run is "
            "resumed: it is for weights of --init_checkpoint"
        )
    return tuple(lines)


def describe_image_sizes(config: Config, plan: Plan) -> tuple[str, ...]:
    """Returns a line where the run ends before the last size of --progressive_image_size."""
    last = plan.value_at(plan.total_steps - 1, config.data.sizes_by_epoch)
    if last == config.data.image_size:
        return ()
    return (
        f"--progressive_image_size: the run ends at epoch {plan.epoch_at(plan.total_steps):.1f}, "
        f"before its images have {config.data.image_size} px; its last ones have {last} px",
    )


def describe_mixing(config: Config) -> tuple[str, ...]:
    """Returns a line where images have no partner to be mixed with."""
    mixing = [name for name in ("mixup", "cutmix") if getattr(config.data, name)]
    if not mixing or config.data.batch_size > 1:
        return ()
    flags = " and ".join(f"--{name}" for name in mixing)
    return (f"{flags}: nothing is mixed, since partners are of one batch, and --batch_size is 1",)


def describe_statistics(
    config: Config, info: DatasetInfo, plan: Plan, variables: Sequence[str]
) -> tuple[str, ...]:
    """Returns a line where too few steps follow on BN's moving statistics' meaningless start."""
    if config.run.init_checkpoint is not None or info.name == synthetic.NAME:
        return ()  # They start at those of other images; nobody will use the network.
    batches = plan.total_steps * config.optimizer.accumulate_steps  # They move with each.
    return moving_statistics.describe_start(config.model.batch_norm_decay, batches, variables)


def describe_telemetry(config: TelemetryConfig, plan: Plan, *, done: int) -> tuple[str, ...]:
    """Returns lines where steps that --profile_steps or --histogram_every want do not come.

    Args:
      config: reports of the run.
      plan: plan of the run.
      done: number of steps that were done before this start; others follow.
    """
    lines = []
    steps, coming = config.profile_range, f"the run makes steps {done + 1} to {plan.total_steps}"
    if steps is not None and (steps[0] <= done or steps[0] > plan.total_steps):
        lines.append(f"--profile_steps={config.profile_steps} traces nothing: {coming}")
    elif steps is not None and steps[-1] > plan.total_steps:
        lines.append(f"--profile_steps={config.profile_steps} traces fewer steps: {coming}")
    every = config.histogram_every
    if every and done // every == plan.total_steps // every:
        lines.append(f"--histogram_every={every} writes nothing: {coming}")
    return tuple(lines)
