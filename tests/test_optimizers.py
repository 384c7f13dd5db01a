"""Update rules against numpy: three steps, with gradients that the test chooses."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
import test_update

from trainer.config import Config, FineTuningConfig, ModelConfig, OptimizerConfig
from trainer.errors import ConfigError
from trainer.graph.losses import build_cross_entropy
from trainer.graph.optimizers import UpdateRule

NAMES = ("conv/weights", "conv/BatchNorm/gamma", "logits/weights", "logits/biases")
SHAPES = ((3, 3, 2, 4), (4,), (4, 5), (5,))
RATES = (0.1, 0.3, 0.2)
DECAY, MOMENTUM, TRUST = 0.02, 0.9, 0.05


def random_values(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def run_rule(
    gradients, *, values=None, head_multiplier=1.0, clip=None, decay_all=False, optimizer="sgd"
):
    """The variables after each step of the trainer's own rule."""
    config = Config(
        model=ModelConfig(weight_decay=DECAY, decay_bn_and_biases=decay_all),
        optimizer=OptimizerConfig(
            optimizer=optimizer,
            momentum=MOMENTUM,
            trust_coefficient=TRUST if optimizer == "lars" else 1e-3,
            clip_global_norm=clip,
        ),
        fine_tuning=FineTuningConfig(head_learning_rate_multiplier=head_multiplier),
    )
    with tf.Graph().as_default(), tf1.Session() as session:
        pairs = zip(NAMES, values or random_values(0), strict=True)
        variables = [tf1.get_variable(name, initializer=value) for name, value in pairs]
        fed = [tf1.placeholder(tf.float32, shape) for shape in SHAPES]
        rate = tf1.placeholder(tf.float32, [])
        rule = UpdateRule(config, rate)
        update = rule.build_update(fed, variables, tf.linalg.global_norm(fed), tf.constant(True))
        session.run(tf1.global_variables_initializer())
        states = []
        for step, now in zip(gradients, RATES, strict=True):
            session.run(update, {rate: now, **dict(zip(fed, step, strict=True))})
            states.append(session.run(variables))
    return states


def decayed(index, *, decay_all=False):
    return DECAY if decay_all or NAMES[index].endswith("weights") else 0.0


def is_kernel(index):
    return NAMES[index].endswith("weights")


class Reference:
    """The rules in numpy, float64. `without` leaves a term out: then they must differ."""

    def __init__(self, optimizer, *, without=None, decay_all=False):
        self.optimizer = optimizer
        self.without = without
        self.decay_all = decay_all
        self.state = [{} for _ in NAMES]
        self.number = 0

    def step(self, values, gradients, rate):
        self.number += 1
        return [
            getattr(self, self.optimizer)(index, value.astype(np.float64), gradient, rate)
            for index, (value, gradient) in enumerate(zip(values, gradients, strict=True))
        ]

    def decay(self, index):
        return 0.0 if self.without == "decay" else decayed(index, decay_all=self.decay_all)

    def lars(self, index, w, g, rate):
        decay, ratio = self.decay(index), 1.0
        if is_kernel(index) and self.without != "ratio":
            ratio = TRUST * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
        kept = 0.0 if self.without == "momentum" else MOMENTUM
        v = kept * self.state[index].get("v", 0.0) + rate * ratio * (g + decay * w)
        self.state[index]["v"] = v
        return w - v

    def direction(self, index, g, epsilon):
        state = self.state[index]
        state["m"] = MOMENTUM * state.get("m", 0.0) + (1 - MOMENTUM) * g
        state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g.astype(np.float64) ** 2
        if self.without == "correction":
            return state["m"] / (np.sqrt(state["v"]) + epsilon)
        m = state["m"] / (1 - MOMENTUM**self.number)
        return m / (np.sqrt(state["v"] / (1 - 0.999**self.number)) + epsilon)

    def adamw(self, index, w, g, rate):
        return w - rate * (self.direction(index, g, 1e-8) + self.decay(index) * w)

    def lamb(self, index, w, g, rate):
        step = self.direction(index, g, 1e-6) + self.decay(index) * w
        if is_kernel(index) and self.without != "ratio":
            step *= np.linalg.norm(w) / np.linalg.norm(step)
        return w - rate * step

    def rmsprop(self, index, w, g, rate):
        state = self.state[index]
        state["s"] = 0.9 * state.get("s", 1.0) + 0.1 * g.astype(np.float64) ** 2
        kept = 0.0 if self.without == "momentum" else MOMENTUM
        epsilon = 1e-10 if self.without == "epsilon" else 1.0
        state["v"] = kept * state.get("v", 0.0) + rate * g / np.sqrt(state["s"] + epsilon)
        return w - state["v"]

    def sgd(self, index, w, g, rate):
        del index
        return w - rate * g


def largest_difference(states, reference, gradients, values=None):
    values, worst = values or random_values(0), 0.0
    for state, step, rate in zip(states, gradients, RATES, strict=False):
        values = reference.step(values, step, rate)
        for ours, theirs in zip(state, values, strict=True):
            worst = max(worst, np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    return worst


@pytest.mark.parametrize(
    ("optimizer", "terms"),
    [
        ("lars", ["decay", "ratio", "momentum"]),
        ("lamb", ["decay", "ratio", "correction"]),
        ("adamw", ["decay", "correction"]),
        ("rmsprop", ["momentum", "epsilon"]),
    ],
)
def test_three_steps_are_those_of_the_paper(optimizer, terms):
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    states = run_rule(gradients, optimizer=optimizer)
    assert largest_difference(states, Reference(optimizer), gradients) < 1e-5
    for term in terms:
        assert largest_difference(states, Reference(optimizer, without=term), gradients) > 1e-3


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "adamw"])
def test_biases_and_scales_decay_where_that_is_asked_for(optimizer):
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    states = run_rule(gradients, optimizer=optimizer, decay_all=True)
    assert largest_difference(states, Reference(optimizer, decay_all=True), gradients) < 1e-5
    assert largest_difference(states, Reference(optimizer), gradients) > 1e-4


def test_weights_or_gradients_of_zero_have_a_ratio_of_one():
    zeros = [np.zeros(shape, np.float32) for shape in SHAPES]
    without_gradients = run_rule([zeros] * 3, optimizer="lars")
    reference = Reference("lars", without="ratio")
    assert largest_difference(without_gradients, reference, [zeros] * 3) < 1e-5
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    for optimizer in ("lars", "lamb"):
        first, *_ = run_rule(gradients, values=zeros, optimizer=optimizer)
        reference = Reference(optimizer, without="ratio")
        assert largest_difference([first], reference, gradients[:1], zeros) < 1e-5


def test_a_long_gradient_is_scaled_down_and_a_short_one_is_not():
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    gradients[1] = [value / 100 for value in gradients[1]]
    states = run_rule(gradients, clip=2.0)
    norms = [np.sqrt(sum(np.sum(part**2) for part in step)) for step in gradients]
    assert norms[0] > 2 > norms[1]
    clipped = [
        [part * min(1.0, 2 / norm) for part in step]
        for step, norm in zip(gradients, norms, strict=True)
    ]
    assert largest_difference(states, Reference("sgd"), clipped) < 1e-5
    assert largest_difference(states, Reference("sgd"), gradients) > 1e-2


def test_the_head_has_its_own_learning_rate():
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    states = run_rule(gradients, head_multiplier=10.0)
    scaled = [[*step[:2], *(10 * part for part in step[2:])] for step in gradients]
    assert largest_difference(states, Reference("sgd"), scaled) < 1e-5


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_a_rule_with_two_rates_counts_its_steps_twice_and_alike(optimizer):
    gradients = [random_values(seed) for seed in (1, 2, 3)]
    states = run_rule(gradients, head_multiplier=1.5, optimizer=optimizer)
    plain = run_rule(gradients, optimizer=optimizer)
    for ours, theirs in zip(states, plain, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert np.max(np.abs(ours[2] - theirs[2])) > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_sigmoid_loss_is_the_mean_of_binary_cross_entropies(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, 5))
    targets = rng.dirichlet(np.ones(5), 6)
    smoothed = targets * (1 - smoothing) + smoothing / 5
    probabilities = 1 / (1 + np.exp(-logits))
    each = smoothed * np.log(probabilities) + (1 - smoothed) * np.log(1 - probabilities)
    with tf.Graph().as_default(), tf1.Session() as session:
        fed = [tf.constant(value, tf.float32) for value in (logits, targets)]
        ours = session.run(build_cross_entropy(*fed, smoothing, loss="sigmoid"))
        softmax = session.run(build_cross_entropy(*fed, smoothing))
    np.testing.assert_allclose(ours, -each.mean(1), rtol=1e-5)
    assert np.max(np.abs(ours - softmax)) > 0.1


@pytest.fixture
def run_of():
    """Makes runs of the tiny network with an optimizer's flags, and closes them."""
    runs = []

    def create(**flags):
        config = test_update.create_config()
        optimizer = dataclasses.replace(config.optimizer, **flags)
        runs.append(test_update.Run(dataclasses.replace(config, optimizer=optimizer)))
        return runs[-1]

    yield create
    for run in runs:
        run.session.close()


@pytest.mark.slow
def test_rules_that_decay_by_themselves_have_no_decay_in_their_loss(run_of):
    metrics = run_of(optimizer="lamb").step()
    assert metrics.weight_decay_loss == 0
    assert metrics.loss == metrics.cross_entropy
    metrics = run_of(optimizer="momentum").step()
    assert metrics.loss == pytest.approx(metrics.cross_entropy + metrics.weight_decay_loss)
    assert metrics.weight_decay_loss > 0.01


def test_a_clipped_run_reports_the_norm_before_and_takes_the_step_after(run_of):
    """With plain gradient descent, the variables move by the learning rate times the norm."""
    run = run_of(optimizer="sgd", clip_global_norm=0.01)
    names = run.train.gradient_names
    before = run.values()
    metrics = run.step()
    after = run.values()
    assert metrics.gradient_norm > 0.1
    moved = np.sqrt(sum(np.sum((after[name] - before[name]) ** 2) for name in names))
    assert moved == pytest.approx(test_update.LEARNING_RATE * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optimizer": "lars", "momentum": 0.0}, "--momentum: must be greater than 0 with"),
        ({"lr_steps": "30:0.1"}, "--lr_steps: must be given with --lr_schedule=step"),
        ({"lr_schedule": "step", "lr_steps": "30"}, "--lr_steps: must be EPOCH:FACTOR"),
        ({"lr_schedule": "step", "lr_steps": "30:0.1,20:0.01"}, "--lr_steps: must be EPOCH:FACTOR"),
        ({"lr_schedule": "step", "lr_steps": "30:-1"}, "--lr_steps: must be EPOCH:FACTOR"),
        ({"lr_schedule": "step", "lr_steps": "x:0.1"}, "--lr_steps: must be EPOCH:FACTOR"),
        ({"lr_schedule": "step", "lr_steps": "nan:0.1"}, "--lr_steps: must be EPOCH:FACTOR"),
        ({"optimizer": "sgd", "momentum": 0.95}, "--momentum: must be given with another --opt"),
        ({"trust_coefficient": 0.1}, "--trust_coefficient: must be given with --optimizer=lars"),
        ({"lr_decay_factor": 0.5}, "--lr_decay_factor: must be given with --lr_schedule=exp"),
        ({"lr_decay_epochs": 1.0}, "--lr_decay_epochs: must be given with --lr_schedule=exp"),
        (
            {"warmup_learning_rate": 0.1, "warmup_epochs": 0.0},
            "--warmup_learning_rate: must be given with a warm-up",
        ),
        ({"clip_global_norm": 0.0}, "--clip_global_norm: must be greater than 0"),
        ({"ema_decay": 1.0}, "--ema_decay: must be less than 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**flags)
