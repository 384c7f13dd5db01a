"""Builds what a run needs before its first step."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from models import slim_compat
from trainer.checkpoints import layout, model_file, restore
from trainer.checkpoints.manifest import RunFacts
from trainer.checkpoints.store import Store, create_store
from trainer.checkpoints.warm_start import Head
from trainer.config import Config
from trainer.cpu_kernels import library
from trainer.distributed import Group
from trainer.graph import learning_rate, precision, scopes, train_step
from trainer.graph.evaluation import EvaluationGraph, build_evaluation_graph
from trainer.graph.initial_values import build_initializer
from trainer.graph.network import find_network
from trainer.inputs import synthetic
from trainer.inputs.dataset import AnyDataset, DatasetInfo, open_dataset
from trainer.machine.session import open_session
from trainer.plan import Plan, create_plan
from trainer.process import installed, start_up, texts
from trainer.run import outputs, remarks
from trainer.safety import nonfinite
from trainer.telemetry.console import tell_phase
from trainer.telemetry.mllog import MLPerfLog, create_mllog
from trainer.telemetry.pages import input_samples
from trainer.timing import PhaseTimes


class Setup(NamedTuple):
    """Everything that the loop needs.

    Attributes:
      dataset: data set of the run.
      plan: plan of the run.
      image_size: height and width of the training images, pixels.
      train: graph of the step.
      evaluation: graph that evaluates a batch; None where there is nothing to evaluate on.
      samples: first images of the training data, for TensorBoard.
      variables: variables of the run: what a checkpoint holds.
      store: store of the checkpoints.
      messages: messages about the data, and about what was restored.
      policy: policy of --on_nonfinite.
      session: session that has the variables.
      mllog: log of --mllog.
      phases: times of the phases before the first step.
    """

    dataset: AnyDataset
    plan: Plan
    image_size: int
    train: train_step.TrainGraph
    evaluation: EvaluationGraph | None
    samples: input_samples.InputSamples
    variables: tuple[tf.Variable, ...]
    store: Store
    messages: tuple[str, ...]
    policy: nonfinite.Policy
    session: tf1.Session
    mllog: MLPerfLog
    phases: PhaseTimes

    @property
    def info(self) -> DatasetInfo:
        """Description of the data set."""
        return self.dataset.info


def set_up(config: Config, group: Group, phases: PhaseTimes, *, first_step: int = 0) -> Setup:
    """Opens the data, builds the graph and, on rank 0, restores the checkpoint. No collectives.

    Args:
      config: configuration of the run.
      group: the workers.
      phases: times of the phases before the first step.
      first_step: step at which the run is thought to begin, for --progressive_image_size.
    """
    outputs.check_places(config, group.worker)
    mllog = create_mllog(config, rank=group.worker.rank)
    if config.run.deterministic:
        tf.config.experimental.enable_op_determinism()
    rank = group.worker.rank
    if config.data.data_dir is not None:
        tell_phase(f"opening the data in {texts.printable(config.data.data_dir)}", rank=rank)
    dataset = open_dataset(config.data, num_classes=config.model.num_classes)
    info = dataset.info
    outputs.check_classes(config, group.worker, info)
    plan = create_plan(
        config.run,
        global_batch_size=config.data.batch_size
        * config.optimizer.accumulate_steps
        * group.worker.size,
        train_examples=info.num_train_examples,
        validation_examples=info.num_validation_examples,
        is_synthetic=info.name == synthetic.NAME,
    )
    _check_image_sizes(config)
    phases.finish("data")
    tell_phase("building the graph of the network and of its training step", rank=rank)
    setup = _build(config, group, dataset, plan, mllog, phases, done=first_step)
    names = [variable.op.name for variable in setup.variables]
    setup.store.check_room()
    messages = (
        *remarks.describe_data(dataset),
        *(dataset.describe_sizes() if rank == 0 else ()),
        *precision.describe_slowness(config.model.precision, library.cpu_flags()),
        *remarks.describe_statistics(config, info, plan, names),
        *remarks.describe_norms(config, group, names),
        *remarks.describe_goal(config, info),
        *learning_rate.describe_warmup(config.optimizer, config.rate_batch_size(group.worker.size)),
        *learning_rate.describe_late_drops(
            config.optimizer, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch
        ),
        *setup.train.recomputed.describe(config.model.recompute),
        *remarks.describe_image_sizes(config, plan),
        *remarks.describe_mixing(config),
        *setup.store.restore(setup.session),
        *(model_file.describe_start(config) if rank == 0 else ()),
    )
    phases.finish("restore")
    return setup._replace(messages=messages)


def _check_image_sizes(config: Config) -> None:
    """Raises ConfigError where a size is too small for the network, by the flag that gives it."""
    data = config.data
    find_network(config.model, data.image_size)
    smallest = min(size for _, size in data.sizes_by_epoch)
    find_network(config.model, smallest, flag="progressive_image_size")
    find_network(config.model, data.evaluation_size, flag="eval_image_size")


def find_first_step(config: Config, group: Group) -> int:
    """Returns the step at which the run probably begins, where its graph depends on that.

    Where it is another one, since the newest checkpoint is damaged or of other workers, the graph
    is built again. A collective.
    """
    if config.data.progressive_image_size is None or config.run.logdir is None:
        return 0
    is_first = group.worker.rank == 0
    steps = layout.steps_in(config.run.logdir) if is_first else ()
    return int(group.gather(max(steps, default=0))[0])


def at_size(config: Config, group: Group, setup: Setup, *, done: int) -> Setup:
    """Returns what the step after `done` needs: built anew where its images have another size.

    All workers call it together.
    """
    image_size = setup.plan.value_at(done, config.data.sizes_by_epoch)
    if image_size == setup.image_size:
        return setup
    tell_phase(f"building the graph for images of {image_size} px", rank=group.worker.rank)
    setup = _set_up_again(config, group, setup, done=done)
    setup.session.run(setup.train.broadcast_op)
    setup.phases.finish("broadcast")
    return setup


def _set_up_again(config: Config, group: Group, before: Setup, *, done: int) -> Setup:
    """Builds the graph for images of another size, with the variables of the one before.

    Args:
      config: configuration of the run.
      group: the workers, all of which have the same variables.
      before: what was built; its session is closed.
      done: number of steps that are done.
    """
    values = before.session.run(list(before.variables))
    before.session.close()
    before.phases.finish("restore")
    setup = _build(
        config, group, before.dataset, before.plan, before.mllog, before.phases, done=done
    )
    restore.assign(setup.session, list(zip(setup.variables, values, strict=True)))
    setup.store.take_over(before.store)
    before.phases.finish("restore")
    return setup._replace(policy=before.policy)


def _build(
    config: Config,
    group: Group,
    dataset: AnyDataset,
    plan: Plan,
    mllog: MLPerfLog,
    phases: PhaseTimes,
    *,
    done: int,
) -> Setup:
    """Builds the graph for the size of training images after `done` steps; starts its session."""
    image_size = plan.value_at(done, config.data.sizes_by_epoch)
    sized = dataset.at_size(image_size)
    data = dataclasses.replace(
        config.data,
        image_size=image_size,
        eval_image_size=config.data.evaluation_size,
        progressive_image_size=None,
    )
    built = dataclasses.replace(config, data=data)
    rank = group.worker.rank
    with (
        start_up.without_collection(),
        slim_compat.compared_as_objects(),
        tf.Graph().as_default() as main_graph,
    ):
        tf1.set_random_seed(config.run.seed)
        train = train_step.build_train_graph(built, group, sized)
        evaluation = None
        if plan.evaluate_every is not None:
            evaluation = build_evaluation_graph(built, group, sized, train.averages)
        with tf.name_scope(scopes.INPUTS):
            sampled = input_samples.build_samples(train.stream, built, dataset.info.num_classes)
        samples = input_samples.create_input_samples(
            sampled, built, rank=rank, names=dataset.info.names_of_classes
        )
        variables = tuple(tf1.global_variables())
        store = create_store(
            config.run,
            rank=rank,
            variables=variables,
            facts=_create_facts(config, group, dataset.info, plan),
            fine_tuning=config.fine_tuning,
            head=Head(dataset.info.class_names, config.optimizer.loss),
        )
        initializer = build_initializer()
        main_graph.finalize()
        phases.finish("graph")
        tell_phase("setting the variables", rank=rank)
        session = open_session(
            local_rank=group.worker.local_rank,
            local_size=group.worker.local_size,
            model=config.model,
        )
    session.run(initializer)
    return Setup(
        dataset=dataset,
        plan=plan,
        image_size=image_size,
        train=train,
        evaluation=evaluation,
        samples=samples,
        variables=variables,
        store=store,
        messages=(),
        policy=nonfinite.Policy(config.run.on_nonfinite),
        session=session,
        mllog=mllog,
        phases=phases,
    )


def _create_facts(config: Config, group: Group, info: DatasetInfo, plan: Plan) -> RunFacts:
    """Returns what the run's checkpoints record of it."""
    return RunFacts(
        workers=group.worker.size,
        global_batch_size=plan.global_batch_size,
        total_steps=plan.total_steps,
        train_examples=info.num_train_examples,
        fingerprint=info.fingerprint,
        versions=installed.versions(),
        config=dataclasses.asdict(outputs.as_read(config, info)),
        kernels=library.describe(precision.compute_dtype(config.model.precision)),
    )
