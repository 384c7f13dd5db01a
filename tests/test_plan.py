"""The plan of a run: what happens at which step."""

import fractions
import math

import pytest

from trainer.config import RunConfig
from trainer.plan import create_plan


def make_plan(*, global_batch_size=64, validation_examples=360, **run):
    return create_plan(
        RunConfig(**run),
        global_batch_size=global_batch_size,
        train_examples=1437,
        validation_examples=validation_examples,
    )


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        (
            {"epochs": 1.0},
            23,
        ),  # 1437 / 64 = 22.45: the epoch's last examples need a 23rd
        ({"epochs": 2.0}, 45),  # 44.9
        ({"steps": 7}, 7),
        ({}, 2021),  # 90 epochs
        ({"epochs": 1e-9}, 1),
    ],
)
def test_total_steps(run, steps):
    assert make_plan(**run).total_steps == steps


@pytest.mark.parametrize(("run", "steps"), [({}, 100), ({"epochs": 90.0}, 2021), ({"steps": 7}, 7)])
def test_images_that_mean_nothing_are_trained_on_for_as_long_as_timing_takes(run, steps):
    plan = create_plan(
        RunConfig(**run),
        global_batch_size=64,
        train_examples=1437,
        validation_examples=0,
        is_synthetic=True,
    )
    assert plan.total_steps == steps


def test_rounding_adds_no_step():
    plan = create_plan(
        RunConfig(epochs=1.1), global_batch_size=10, train_examples=1000, validation_examples=0
    )
    assert plan.total_steps == 110


def test_the_last_step_saves_evaluates_and_reports_whatever_the_intervals():
    plan = make_plan(steps=7, checkpoint_every=0, eval_every_epochs=0.0, log_every=5)
    assert [n for n in range(1, 8) if plan.saves_at(n)] == [7]
    assert [n for n in range(1, 8) if plan.evaluates_at(n)] == [7]
    assert [n for n in range(1, 8) if plan.reports_at(n)] == [5, 7]


def test_numbers_are_written_before_each_checkpoint():
    plan = make_plan(steps=9, checkpoint_every=4, log_every=100)
    assert [n for n in range(1, 10) if plan.reports_at(n)] == [4, 8, 9]


def evaluated(plan):
    return [step for step in range(1, plan.total_steps + 1) if plan.evaluates_at(step)]


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "every"),
    [
        (1437, 64, 90, 1.0),  # Of 22.45 steps.
        (1437, 64, 2, 0.5),
        (204, 10, 5, 1.0),
        (14, 10, 10, 1.0),
        (100, 5, 8, 1.1),
        (1000, 10, 2.2, 1.1),
        (1_281_167, 256, 90, 1.0),
        (6, 10, 10, 1.0),
    ],
)
def test_an_evaluation_follows_the_step_that_ends_its_epochs(examples, batch_size, epochs, every):
    plan = create_plan(
        RunConfig(epochs=float(epochs), eval_every_epochs=every),
        global_batch_size=batch_size,
        train_examples=examples,
        validation_examples=1,
    )
    exact = fractions.Fraction(str(every)) * examples / batch_size
    count = int(fractions.Fraction(str(epochs)) / fractions.Fraction(str(every)))
    ends = [math.ceil(number * exact) for number in range(1, count + 1)]
    assert evaluated(plan) == sorted({*ends, plan.total_steps})


def test_a_run_has_as_many_evaluations_as_epochs():
    assert len(evaluated(make_plan(epochs=90.0))) == 90
    assert evaluated(make_plan(epochs=2.0, eval_every_epochs=0.5)) == [12, 23, 34, 45]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (45, [12, 23, 34, 45]),
        (46, [12, 23, 34, 46]),
        (47, [12, 23, 34, 47]),
        (48, [12, 23, 34, 45, 48]),
    ],
)
def test_no_evaluation_is_shortly_before_the_last(steps, expected):
    assert evaluated(make_plan(steps=steps, eval_every_epochs=0.5)) == expected


def test_without_validation_data_nothing_is_evaluated():
    plan = make_plan(steps=3, validation_examples=0)
    assert not any(plan.evaluates_at(n) for n in range(1, 4))
