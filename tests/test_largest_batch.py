"""--batch_size=auto: the search by an oracle, and a real one beside a linear search."""

import itertools
import json
import os
import pathlib
import signal
import sys

import pytest
from absl import flags as absl_flags
from processes import ROOT, run

from flags import command_line
from trainer.benchmark import largest_batch
from trainer.config import Config, DataConfig
from trainer.errors import ConfigError, UserError
from trainer.machine import free_memory
from trainer.process.alone import Ended


def parse(*arguments):
    return command_line.parse(["slim-horovod", *arguments], absl_flags.FlagValues())


def linear_search(fits, most):
    """The numbers from 1 on, up to the first that does not fit."""
    return sum(1 for _ in itertools.takewhile(fits, range(1, most + 1)))


@pytest.mark.parametrize("most", [1, 2, 3, 4, 31, 64, 100])
@pytest.mark.parametrize("start", [1, 2, 5, 32, 1024])
def test_a_search_finds_what_a_linear_search_does_and_tries_nothing_twice(start, most):
    for largest in range(most + 3):
        tried = []

        def fits(size, largest=largest, tried=tried):
            tried.append(size)
            return size <= largest

        found = largest_batch.search(fits, start=start, most=most)
        assert found == linear_search(lambda size, largest=largest: size <= largest, most)
        assert len(tried) == len(set(tried)) <= 2 * max(start, most).bit_length() + 1
        assert all(1 <= size <= most for size in tried)


@pytest.mark.parametrize(
    ("status", "errors", "size", "is_miss"),
    [
        (81, "slim-horovod: --batch_size: 8 images do not fit", 1, True),
        (-signal.SIGKILL, "", 1, True),
        (
            -signal.SIGABRT,
            "terminate called after throwing an instance of 'std::bad_alloc'",
            1,
            True,
        ),
        (1, "Traceback (most recent call last):\nMemoryError", 1, True),
        (-signal.SIGSEGV, "", 2, True),
        (-signal.SIGSEGV, "", 1, False),
        (-signal.SIGTERM, "", 2, False),
        (1, "Status: 5, message: could not execute a primitive, in file", 2, True),
        (1, "Status: 5, message: could not execute a primitive, in file", 1, False),
        (2, "slim-horovod: --model: there is none, MemoryError", 2, False),
        (1, "Traceback (most recent call last):\nValueError", 2, False),
        (79, "slim-horovod: hung", 2, False),
    ],
)
def test_which_ends_are_for_want_of_memory(status, errors, size, is_miss):
    assert largest_batch.is_miss(Ended(status, errors, False), size) == is_miss


def run_as(monkeypatch, trial, *, train_examples=None):
    """Makes processes end as `trial(batch size)` does; returns the command lines of all."""
    started = []

    def run_alone(flags, environ, *, quiet):
        assert quiet
        config = parse(*flags)
        started.append(config)
        if config.mode == "describe":
            kept = {"activations": 3 * 2**30, "recomputed": 2**30, "variables": 2**20}
            result = {"num_classes": 7, "train_examples": train_examples, "training_bytes": kept}
            pathlib.Path(config.run.result_json).write_text(json.dumps({"result": result}))
            return Ended(0, "", False)
        return trial(config.data.batch_size)

    monkeypatch.setattr(largest_batch, "run_alone", run_alone)
    monkeypatch.setattr(free_memory, "usable_bytes", lambda: 41 * 2**30)
    return started


def end_above(largest, failure):
    return lambda size: Ended(0, "", False) if size <= largest else failure


def test_the_largest_that_fits_takes_the_place_of_the_word(monkeypatch):
    config = parse("--batch_size=auto", "--precision=bfloat16", "--accumulate_steps=8")
    assert config.automatic == ("batch_size",)
    started = run_as(monkeypatch, end_above(13, Ended(-signal.SIGKILL, "", False)))
    lines = []
    found = largest_batch.find(config, lines.append)
    assert found == parse("--batch_size=13", "--precision=bfloat16", "--accumulate_steps=8")
    assert found.given == config.given
    sizes = [each.data.batch_size for each in started]
    assert sizes == [1, 8, 16, 12, 14, 13]  # 4 GiB an image: 8 may fit into 41.
    ends = ["fits", "does not fit (ended by SIGKILL)"]
    expected = [f"batch {size}: {ends[size > 13]}" for size in sizes[1:]]
    last = "--batch_size=13: the largest that fits in memory, after 5 trials"
    assert lines == [*expected, last]
    assert [each.mode for each in started] == ["describe", *["train"] * 5]
    trial = started[1]
    assert (trial.model.precision, trial.model.num_classes) == ("bfloat16", 7)
    assert trial.optimizer.accumulate_steps == 2  # One sum of gradients, as of eight.


def test_a_batch_is_not_larger_than_the_data(monkeypatch):
    started = run_as(monkeypatch, end_above(1000, None), train_examples=90)
    config = parse(
        "--batch_size=auto", "--accumulate_steps=2", "--progressive_image_size=0:512,9:224"
    )
    assert largest_batch.find(config, print).data.batch_size == 45
    assert {each.data.image_size for each in started[1:]} == {512}  # The run's largest.


def test_where_not_even_one_image_fits_a_line_says_so(monkeypatch):
    run_as(monkeypatch, end_above(0, Ended(81, "", False)))
    with pytest.raises(
        UserError, match="--batch_size: auto has found none: not even one"
    ) as raised:
        largest_batch.find(parse("--batch_size=auto"), print)
    assert raised.value.status == 81


def test_another_failure_ends_the_search_with_its_own_line(monkeypatch):
    run_as(monkeypatch, end_above(8, Ended(79, "note\nslim-horovod: a step hangs", False)))
    with pytest.raises(UserError, match=r"^a step hangs$") as raised:
        largest_batch.find(parse("--batch_size=auto"), print)
    assert raised.value.status == 79
    run_as(monkeypatch, lambda size: Ended(-signal.SIGSEGV, "", False))
    with pytest.raises(UserError, match="a trial of 1 was ended by SIGSEGV") as raised:
        largest_batch.find(parse("--batch_size=auto"), print)
    assert raised.value.status == 1


def test_the_word_is_for_one_process_and_for_modes_that_train_or_tell(monkeypatch):
    with pytest.raises(ConfigError, match="--batch_size: must be a number with --mode=evaluate"):
        parse("--mode=evaluate", "--batch_size=auto")
    with pytest.raises(ConfigError, match="must be a number with --benchmark_batch_sizes"):
        parse("--benchmark", "--benchmark_batch_sizes=1,2", "--batch_size=auto")
    with pytest.raises(ConfigError, match="--accumulate_steps: must be 1 with --benchmark"):
        parse("--benchmark", "--batch_size=auto", "--accumulate_steps=2")
    with pytest.raises(UserError, match="batch_size"):
        parse("--batch_size=automatic")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--batch_size: must be a number under a launcher"):
        largest_batch.find(parse("--batch_size=auto"), print)


def test_a_flag_that_has_its_value_is_not_automatic():
    assert parse("--batch_size=auto", "--batch_size=32") == Config(data=DataConfig(batch_size=32))


LIMIT = 1_900_000_000
# An image of this size takes 0.56 GB: the limit is far from what any number of them takes.
FLAGS = ["--model=tiny:network", "--dataset=synthetic", "--image_size=3072", "--log_every=1"]


def train(limit, *flags):
    # On two cores: the stacks of a thread for each core count as well.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    bound = ["taskset", "--cpu-list", cores, "prlimit", f"--data={limit}"]
    command = [*bound, sys.executable, "-m", "trainer", *FLAGS, *flags]
    return run(command, cwd=ROOT)


@pytest.mark.processes
def test_under_a_limit_it_is_what_a_linear_search_finds(tmp_path, monkeypatch):
    logdir = f"--logdir={tmp_path}/run"
    done = train(LIMIT, "--batch_size=auto", "--steps=1", logdir, f"--result_json={tmp_path}/r")
    assert done.returncode == 0, done.stdout + done.stderr
    # The numbers by themselves, with the share of the limit that trials have: 1 needs less than 2.
    share = int(free_memory._USABLE_SHARE * LIMIT)
    sizes = range(2, 9)
    found = 1 + linear_search(
        lambda n: train(share, f"--batch_size={sizes[n - 1]}", "--steps=2").returncode == 0, 7
    )
    assert 1 < found < 8
    lines = [line for line in done.stdout.splitlines() if "batch" in line]
    assert f"batch {found}: fits" in lines
    assert any(line.startswith(f"batch {found + 1}: does not fit") for line in lines)
    assert any(line.startswith(f"--batch_size={found}: the largest that fits") for line in lines)
    assert f"--batch_size={found}\n" in (tmp_path / "run" / "flags").read_text()
    assert json.loads((tmp_path / "r").read_text())["config"]["data"]["batch_size"] == found
    # A run that goes on does not search: no process is started.
    monkeypatch.setattr(largest_batch, "run_alone", None)
    said = []
    again = largest_batch.find(parse("--batch_size=auto", "--steps=2", logdir), said.append)
    assert again.data.batch_size == found
    assert said == [f"--batch_size=auto: the run goes on with its --batch_size={found}"]
