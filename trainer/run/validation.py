"""Evaluates in the middle of training, and reports and notes the result."""

from trainer.distributed import Group
from trainer.run.evaluation import Evaluation, Interrupted, evaluate, write_scalars
from trainer.run.guard import LoopGuard
from trainer.run.monitor import Monitor
from trainer.run.setup import Setup


def validate(
    group: Group,
    setup: Setup,
    step: int,
    monitor: Monitor,
    guard: LoopGuard,
    *,
    is_logged: bool = False,
    is_noted: bool = True,
) -> tuple[Evaluation | None, bool]:
    """Evaluates, where there is something to evaluate on, and reports the result. A collective.

    Args:
      group: the workers.
      setup: what was built for the run.
      step: the step that is done.
      monitor: gets the result.
      guard: notes the result, and keeps the best checkpoint.
      is_logged: whether the result is logged already, as where a start before was killed between
        logging and noting it.
      is_noted: whether the result counts as that of the checkpoint, which may be the best.

    Returns:
      the result, None where there is none; and whether a worker was asked to stop meanwhile.
    """
    if setup.evaluation is None:
        return None, False
    try:
        with (
            guard.long_phase(f"the evaluation after step {step}"),
            monitor.mllog.evaluating(step) as accuracies,
        ):
            result = evaluate(
                setup.session,
                setup.evaluation,
                group,
                monitor.views,
                is_stop_asked=guard.is_stop_asked,
                after_batch=lambda _: guard.progress(),
            )
            accuracies.append(result.top1)
    except Interrupted:
        return None, True
    num_classes = setup.info.num_classes
    monitor.console.say(f"step {step}: evaluation: {result.describe(num_classes)}")
    if not is_logged:
        write_scalars(monitor.writer, step, result, num_classes=num_classes)
    monitor.views.publish(step, group)
    monitor.writer.flush()
    if is_noted:
        guard.note_evaluation(step, result.top1)
    return result, False
