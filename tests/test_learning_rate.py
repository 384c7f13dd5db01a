"""Schedules against values computed by hand."""

import dataclasses
import itertools
import math

import pytest

from trainer.config import OptimizerConfig
from trainer.config.statement import statement_of
from trainer.graph.learning_rate import create_schedule, describe_late_drops


def schedule(lr_schedule="constant", *, global_batch_size=256, total_steps=90, warmup_epochs=0.0):
    """One epoch is one step here, unless the test says otherwise."""
    config = OptimizerConfig(
        base_learning_rate=0.1, lr_schedule=lr_schedule, warmup_epochs=warmup_epochs
    )
    return create_schedule(
        config,
        global_batch_size=global_batch_size,
        total_steps=total_steps,
        steps_per_epoch=1,
    )


@pytest.mark.parametrize(("global_batch_size", "peak"), [(256, 0.1), (64, 0.025), (8192, 3.2)])
def test_the_peak_scales_with_the_global_batch(global_batch_size, peak):
    assert schedule(global_batch_size=global_batch_size)(0) == pytest.approx(peak)


def test_warmup_is_linear_and_ends_at_the_peak():
    rate = schedule(warmup_epochs=5)
    assert [rate(step) for step in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (10, 0.1),  # the warm-up's end
        (
            30,
            0.1 * 0.5 * (1 + math.cos(math.pi / 4)),
        ),  # a quarter of the 80 steps after it
        (50, 0.05),  # half of them
        (89, 0.1 * 0.5 * (1 + math.cos(math.pi * 79 / 80))),
    ],
)
def test_cosine(step, value):
    assert schedule("cosine", warmup_epochs=10)(step) == pytest.approx(value)


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (29, 0.1),
        (30, 0.01),
        (59, 0.01),
        (60, 0.001),
        (79, 0.001),
        (80, 0.0001),
        (89, 0.0001),
    ],
)
def test_step_falls_at_epochs_30_60_80_of_90(step, value):
    assert schedule("step")(step) == pytest.approx(value)


@pytest.mark.parametrize(("step", "value"), [(0, 0.1), (45, 0.025), (81, 0.001)])
def test_polynomial_has_power_2(step, value):
    assert schedule("polynomial")(step) == pytest.approx(value)


def test_a_run_shorter_than_its_warmup_reaches_the_peak():
    rate = schedule("cosine", total_steps=4, warmup_epochs=100)
    assert max(rate(step) for step in range(4)) == pytest.approx(0.1)


def test_no_schedule_is_negative_or_fails_past_the_end():
    names = statement_of(OptimizerConfig.__dataclass_fields__["lr_schedule"]).choices
    assert "exponential" in names
    for name, step in itertools.product(names, (0, 1, 2, 3, 4, 1000)):
        assert schedule(name, total_steps=3)(step) >= 0


def test_steps_at_given_epochs_with_given_factors():
    config = OptimizerConfig(
        base_learning_rate=0.1,
        lr_schedule="step",
        lr_steps="2:0.5,3.5:0.01,8:0",
        warmup_epochs=0.0,
    )
    rate = create_schedule(config, global_batch_size=512, total_steps=20, steps_per_epoch=2)
    expected = [0.2] * 4 + [0.1] * 3 + [0.002] * 9 + [0.0] * 4
    assert [rate(step) for step in range(20)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "flags",
    [
        {"lr_schedule": "step", "lr_steps": "1.1:0.1"},
        {"lr_schedule": "exponential", "lr_decay_epochs": 1.1, "lr_decay_factor": 0.1},
    ],
)
def test_a_change_comes_after_as_many_steps_as_its_epochs_have(flags):
    """In floating point, 1.1 epochs of 100 steps are a little more than 110."""
    config = OptimizerConfig(base_learning_rate=1, warmup_epochs=0.0, **flags)
    rate = create_schedule(config, global_batch_size=256, total_steps=150, steps_per_epoch=100)
    assert (rate(109), rate(110)) == (1, pytest.approx(0.1))


def test_changes_that_the_run_never_reaches_are_told():
    config = OptimizerConfig(lr_schedule="step", lr_steps="30:0.1,60:0.01,80:0.001")
    (line,) = describe_late_drops(config, total_steps=600, steps_per_epoch=10)
    assert "at epoch 60, 80 of --lr_steps: the run ends after 60 epochs" in line
    # 80 epochs of ImageNet, rounded up to whole steps: the last step begins before epoch 80.
    (line,) = describe_late_drops(config, total_steps=400_365, steps_per_epoch=1_281_167 / 256)
    assert "at epoch 80 of --lr_steps" in line
    assert describe_late_drops(config, total_steps=802, steps_per_epoch=10) == ()
    none = OptimizerConfig(lr_schedule="step")
    assert describe_late_drops(none, total_steps=1, steps_per_epoch=10) == ()


def test_exponential_decay_in_stairs_as_slim_has_it():
    config = OptimizerConfig(
        base_learning_rate=0.1,
        lr_schedule="exponential",
        lr_decay_factor=0.5,
        lr_decay_epochs=2,
        warmup_epochs=1.0,
    )
    rate = create_schedule(config, global_batch_size=256, total_steps=20, steps_per_epoch=2)
    expected = [0.05, 0.1, *[0.1] * 2, *[0.05] * 4, *[0.025] * 4]
    assert [rate(step) for step in range(12)] == pytest.approx(expected)
    often = dataclasses.replace(config, lr_decay_epochs=1e-7)  # Several times within each step.
    rate = create_schedule(often, global_batch_size=256, total_steps=20, steps_per_epoch=2)
    assert rate(3) == 0


def test_a_warmup_that_begins_at_a_given_rate():
    """As in arXiv:1706.02677, where 0.1 rises to 3.2 in 5 epochs."""
    config = OptimizerConfig(
        base_learning_rate=0.1,
        lr_schedule="constant",
        warmup_epochs=5.0,
        warmup_learning_rate=0.1,
    )
    rate = create_schedule(config, global_batch_size=8192, total_steps=100, steps_per_epoch=1)
    assert [rate(step) for step in range(7)] == pytest.approx(
        [0.1, 0.72, 1.34, 1.96, 2.58, 3.2, 3.2]
    )
