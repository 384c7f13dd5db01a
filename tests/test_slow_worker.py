"""The time when a worker is named as slow."""

from trainer.telemetry.slow_worker import SlowWorkerWatch, find_lag

NAMES = ("worker 0 of 3", "worker 1 of 3", "worker 2 of 3")


def add(watch, steps, *own_ms):
    """Some steps, at each of which the workers took as long as they are said to."""
    own_sec = [[each / 1000] * steps for each in own_ms]
    return watch.add(own_sec, [[0.001] * steps for _ in own_ms])


def test_it_is_named_once_after_long_enough():
    watch = SlowWorkerWatch(NAMES)
    assert add(watch, 19, 100, 130, 100) is None
    line = add(watch, 1, 100, 130, 100)
    assert line.startswith("worker 1 of 3 is slow: 130.0 ms a step before it waits")
    assert "1.0 ms of them for its input; the others take 100.0 ms" in line
    assert add(watch, 20, 100, 130, 100) is None
    assert add(watch, 20, 100, 100, 100) == "worker 1 of 3 is no longer behind"


def test_another_one_is_named_then():
    watch = SlowWorkerWatch(NAMES)
    assert "worker 0 of 3 is slow" in add(watch, 20, 200, 100, 100)
    assert "worker 2 of 3 is slow" in add(watch, 20, 100, 100, 200)


def test_a_few_slow_steps_are_not_worth_a_line():
    watch = SlowWorkerWatch(NAMES)
    for _ in range(5):
        assert add(watch, 9, 100, 100, 100) is None
        assert add(watch, 1, 100, 100, 2000) is None


def test_noise_at_the_limit_is_told_once():
    watch = SlowWorkerWatch(NAMES)
    lines = [add(watch, 20, 100, 121 if number % 2 else 119, 100) for number in range(10)]
    assert len([line for line in lines if line]) == 1


def test_two_workers_and_one():
    assert find_lag([0.1, 0.13], [0.0, 0.05]) == (1, 0.13, 0.05, 0.1)
    assert find_lag([0.1, 0.11], [0.0, 0.0]) is None
    assert find_lag([0.1], [0.0]) is None
    assert find_lag([0.0005, 0.001], [0.0, 0.0]) is None  # Too little to care.
