"""Writers read back from disk; what hurts them does not hurt the run."""

import json
import math
import os
import time

from tensorboard.backend.event_processing import event_accumulator, event_file_loader

from trainer.telemetry.writers import background, json_lines, metrics_lines, protocol
from trainer.telemetry.writers.run_writer import create_writer


def read_events(logdir):
    events = event_accumulator.EventAccumulator(str(logdir), {"scalars": 0})
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def write_steps(logdir, steps, **settings):
    writer = create_writer(str(logdir), rank=0, **settings)
    for step in steps:
        writer.write(step, {"a": step / 2, "b": -step}, wall_time=1000.0 + step)
    writer.close()


def test_events_and_lines_hold_what_was_written(tmp_path):
    write_steps(tmp_path, range(1, 4))
    assert read_events(tmp_path) == {
        "a": [(1, 0.5), (2, 1.0), (3, 1.5)],
        "b": [(1, -1.0), (2, -2.0), (3, -3.0)],
    }
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"step": 3, "wall_time": 1003.0, "a": 1.5, "b": -3}


def test_after_a_resume_each_step_is_there_once(tmp_path):
    write_steps(tmp_path, range(1, 8))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("\0\0}\n")  # Left by a power cut.
        file.write('{"step": null}\n')
        file.write('{"step": 8, "wall_ti')  # Cut, by a kill.
    write_steps(tmp_path, range(4, 10), first_step=4)
    assert [step for step, _ in read_events(tmp_path)["a"]] == list(range(1, 10))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))


def test_where_no_line_is_dropped_the_file_is_not_written_anew(tmp_path):
    """A disk may be full when images get another size in the middle of a run."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n')
    before = path.stat().st_ino
    json_lines.JsonLinesWriter(path, first_step=3).close()
    assert path.stat().st_ino == before
    json_lines.JsonLinesWriter(path, first_step=2).close()
    assert path.read_text() == '{"step": 1, "a": 1.0}\n'


def test_a_run_that_starts_afresh_in_its_folder_shows_its_own_steps(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    write_steps(tmp_path, range(1, 4), first_step=1)
    assert [step for step, _ in read_events(tmp_path)["a"]] == [1, 2, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_who_writes_beside_a_run_takes_nothing_away(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(2, {"c": 3.0}, wall_time=0.0)
    writer.close()
    events = read_events(tmp_path)
    assert len(events["a"]) == 7
    assert events["c"] == [(2, 3.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


def test_who_writes_beside_a_run_that_was_killed_leaves_its_torn_line_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "wall_ti')
    write_steps(tmp_path, [3])
    first, torn, last = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(first)["step"], json.loads(last)["step"]) == (1, 3)
    assert torn == '{"step": 2, "wall_ti'


def test_a_run_goes_on_in_a_new_file_after_another_process_has_begun_one(tmp_path):
    run = create_writer(str(tmp_path), rank=0, first_step=1)
    for step in (1, 2):
        run.write(step, {"a": step}, wall_time=0.0)
        run.flush()
    assert len(list(tmp_path.glob("events.*"))) == 1
    write_steps(tmp_path, [2])
    for step in (3, 4):
        run.write(step, {"a": step}, wall_time=0.0)
        run.flush()
    run.close()
    files = sorted(path.name for path in tmp_path.glob("events.*"))
    steps = [
        [
            event.step
            for event in event_file_loader.EventFileLoader(f"{tmp_path}/{name}").Load()
            if event.HasField("summary")
        ]
        for name in files
    ]
    assert steps == [[1, 2], [2], [3, 4]]


def test_a_restarted_run_drops_old_steps_though_another_process_wrote_before_it(tmp_path):
    write_steps(tmp_path, range(1, 8), first_step=1)
    run = create_writer(str(tmp_path), rank=0, first_step=4)
    run.flush()
    beside = create_writer(str(tmp_path), rank=0)
    beside.write(3, {"c": 1.0}, wall_time=0.0)
    beside.close()
    for step in range(4, 6):
        run.write(step, {"a": step, "b": step}, wall_time=0.0)
    run.close()
    assert [step for step, _ in read_events(tmp_path)["a"]] == [1, 2, 3, 4, 5]


def test_who_has_nothing_to_write_makes_no_file(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_the_newest_evaluation_is_found_among_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics_lines.newest_step(path, "eval/top1") == -1
    path.write_text(
        '{"step": 9, "train/top1": 1}\n{"step": 5, "eval/top1": 1}\n{"step": 8, "eval/top1": 0.'
    )
    assert metrics_lines.newest_step(path, "eval/top1") == 5


def test_events_come_after_those_of_a_clock_that_was_fast(tmp_path):
    later = time.time() + 1000
    (tmp_path / f"events.out.tfevents.{later:017.6f}.host.1").touch()
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.close()
    first, second = sorted(path.name for path in tmp_path.glob("events.*"))
    assert first.endswith(".host.1")
    assert second.endswith(f".{os.getpid()}")


def test_flush_brings_everything_to_disk(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.flush()
    assert read_events(tmp_path) == {"a": [(1, 1.0)]}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    writer.close()


def test_other_ranks_write_nothing(tmp_path):
    writer = create_writer(str(tmp_path), rank=1)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_json_has_no_nan(tmp_path):
    writer = json_lines.JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0}, wall_time=0.0)
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "wall_time": 0.0, "a": None, "b": None, "c": 1.0}


class FullDisk(protocol.NullWriter):
    """A writer that has no space at first."""

    def __init__(self):
        self.tries = 0
        self.written = []

    def write(self, step, scalars, *, wall_time):
        self.tries += 1
        if self.tries <= 3:
            raise OSError(28, "No space left on device")
        self.written.append(step)


def test_a_full_disk_is_told_once_for_all_files_and_tried_again(capsys):
    full = FullDisk()
    writer = background.BackgroundWriter([full, FullDisk()])
    for step in range(1, 6):
        writer.write(step, {}, wall_time=0.0)
    writer.close()
    assert full.written == [4, 5]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "slim-horovod: the logs cannot be written ([Errno 28] No space left on device); training "
        "goes on, and it is tried again"
    ]


def test_what_was_written_gets_to_the_disk_without_a_flush(tmp_path):
    writer = create_writer(str(tmp_path), rank=0)
    writer.write(1, {"a": 1.0}, wall_time=0.0)
    deadline = time.monotonic() + 30
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    writer.close()
