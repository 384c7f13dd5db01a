"""Files are there whole or not at all; what a killed process has left half written is removed."""

import errno
import os
import subprocess
import sys
import time

import pytest
from processes import ROOT, environment

from trainer.config import Config, RunConfig
from trainer.distributed import Group, Worker
from trainer.inputs.conversion import convert
from trainer.inputs.sources import index
from trainer.modes import export
from trainer.process import files, identity
from trainer.process.identity import Process
from trainer.run import outputs
from trainer.safety import run_folder

UNFINISHED = {
    *("log/saving", "log/status.json", "log/run.lock", "log/metrics.jsonl", "log/model.json"),
    *("log/flags", "log/profiling", "log/profile/steps_1_to_2.trace.json.gz"),
    *("result.json", "train-00000-of-00001", ".train.index.npz", "export"),
}
OF_EARLIER_VERSIONS = (
    ".status.json.4711",
    ".metrics.jsonl.4711",
    ".checkpoints.json.4711",
    ".checkpoint.4711",
    ".run.lock.host.example.4711",
    ".saving/model.ckpt-7.data-00000-of-00001",
    ".profiling/plugins/profile/1/host.xplane.pb",
    "best/.checkpoints.json.4711",
    "profile/.steps_1_to_2.trace.json.gz.4711",
)
WHOLE = (
    "status.json",
    "metrics.jsonl",
    "checkpoint",
    "checkpoints.json",
    "model.ckpt-7.index",
    "events.out.tfevents.1.host.2",
    "best/checkpoint",
    ".notes.4711",
    ".notes.partial",
)


def temporaries(folder):
    """Returns what is half written, by the names that it would get."""
    found = folder.rglob(f".*{files.SUFFIX}")
    return {
        str(path.relative_to(folder).with_name(path.name[1:].rsplit(".", 2)[0])) for path in found
    }


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def start_everything_again(folder):
    """Does what programs do at their start with the folders that they write into."""
    with run_folder.hold(str(folder / "log"), Group()):
        outputs.check_places(
            Config(run=RunConfig(result_json=str(folder / "result.json"))), Worker()
        )
    export._find_target(Config(mode="export", run=RunConfig(export_dir=str(folder / "export"))))
    index.files.sweep_beside(folder / ".train.index.npz")
    with convert._alone_in(str(folder)):
        pass


@pytest.mark.processes
def test_what_a_killed_process_was_writing_is_removed_at_the_next_start(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "tests/programs/unfinished_writers.py", str(tmp_path)],
        cwd=ROOT,
        env=environment(TF_CPP_MIN_LOG_LEVEL="3"),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "11\n"
            assert temporaries(tmp_path) == UNFINISHED
            start_everything_again(tmp_path)
            assert temporaries(tmp_path) == UNFINISHED  # It is still alive.
        finally:
            process.kill()
    start_everything_again(tmp_path)
    assert temporaries(tmp_path) == set()


def test_what_earlier_versions_left_is_removed_and_what_is_whole_is_not(tmp_path):
    for name in (*OF_EARLIER_VERSIONS, *WHOLE):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    with run_folder.hold(None, Group()):
        assert files_in(tmp_path) == sorted((*OF_EARLIER_VERSIONS, *WHOLE))
    with run_folder.hold(str(tmp_path), Group()):
        (tmp_path / "run.lock").unlink()
        assert files_in(tmp_path) == sorted(WHOLE)
    assert not (tmp_path / ".saving").exists()
    assert not (tmp_path / ".profiling").exists()


def test_a_pipe_and_an_open_file_of_a_process_are_written_to(tmp_path):
    pipe, redirected = tmp_path / "pipe", tmp_path / "redirected"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        files.check_writable(pipe, "result_json", is_folder=False)
        files.write_text(pipe, "one\n")
        assert reader.stdout.read() == b"one\n"
    assert pipe.is_fifo()
    with open(redirected, "w", encoding="utf-8") as file:
        file.write("first\n")
        file.flush()
        standard_output = tmp_path / "stdout"
        standard_output.symlink_to(f"/proc/self/fd/{file.fileno()}")
        files.write_text(standard_output, "two\n")
        assert os.path.samestat(os.fstat(file.fileno()), redirected.stat())
    assert redirected.read_text() == "first\ntwo\n"
    with pytest.raises(OSError, match="replaced"), files.replacing(pipe):
        pass


def test_what_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    link.symlink_to(target)
    for text in ("one", "two"):  # The file that it leads to need not be there.
        files.check_writable(link, "result_json", is_folder=False)
        files.write_text(link, text)
        assert target.read_text() == text
        assert link.is_symlink()
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


@pytest.fixture
def of_another_host(monkeypatch):
    """Makes paths as another host's processes do."""

    def create(path):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(files, "_host_digest", lambda: "0123abcd")
            temporary = files.temporary_path(path)
        temporary.write_text("x")
        return temporary

    return create


def test_another_hosts_goes_from_a_folder_that_is_held(tmp_path, of_another_host):
    temporary = of_another_host(tmp_path / "status.json")
    files.sweep(tmp_path)
    assert not temporary.exists()


@pytest.mark.parametrize("is_of_this_host", [False, True])
def test_what_a_follower_has_left_stays_for_a_day(
    tmp_path, of_another_host, monkeypatch, is_of_this_host
):
    """On this host it is that of a dead process; whether another host's lives can't be known."""
    temporary = of_another_host(tmp_path / "following")
    if is_of_this_host:
        monkeypatch.setattr(files, "_host_digest", lambda: "0123abcd")
        monkeypatch.setattr(Process, "is_alive", lambda process: False)
    for age_sec, is_left in ((23 * 3600, True), (25 * 3600, False)):
        os.utime(temporary, (time.time() - age_sec,) * 2)
        files.sweep(tmp_path, shared="following")
        assert temporary.exists() == is_left


def test_another_hosts_stays_for_a_day_where_no_folder_is_held(tmp_path, of_another_host):
    result = tmp_path / "result.json"
    earlier = tmp_path / ".result.json.4711"
    earlier.write_text("x")
    others = (of_another_host(result), earlier)
    beside = of_another_host(tmp_path / "other.json")
    for age_sec, is_left in ((0, True), (23 * 3600, True), (25 * 3600, False)):
        for path in (*others, beside):
            os.utime(path, (time.time() - age_sec,) * 2)
        files.sweep_beside(result)
        assert [path.exists() for path in others] == [is_left] * 2
    assert beside.exists()


def test_the_number_of_a_process_alone_keeps_nothing(tmp_path, monkeypatch):
    pid, start_ticks = identity.this_process()
    earlier = Process(pid, start_ticks - 1)
    with monkeypatch.context() as before:
        before.setattr(identity, "this_process", lambda: earlier)
        temporary = files.temporary_path(tmp_path / "a")
    temporary.write_text("x")
    own = files.temporary_path(tmp_path / "a")
    own.write_text("x")
    files.sweep_beside(tmp_path / "a")
    assert not temporary.exists()
    files.sweep(tmp_path)
    assert own.exists()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "export"

    def write(error):
        with files.replacing(target) as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / "file").write_text("x")
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
    write(None)
    assert files_in(tmp_path) == ["export/inner/file"]


@pytest.fixture
def incapable(monkeypatch):
    """A file system that has neither locks nor a way to flush folders."""

    def fail(code):
        def raise_error(*_):
            raise OSError(code, os.strerror(code))

        return raise_error

    files._tell_once.cache_clear()
    monkeypatch.setattr(files.os, "fsync", fail(errno.EINVAL))
    monkeypatch.setattr(files.fcntl, "flock", fail(errno.ENOLCK))


@pytest.mark.usefixtures("incapable")
def test_what_a_file_system_can_not_do_is_told_once(tmp_path, capfd):
    for number in range(3):
        files.write_text(tmp_path / "file", str(number))
        with open(tmp_path / "lock", "w") as file:
            files.lock(file, tmp_path / "lock", wait=False)
    assert (tmp_path / "file").read_text() == "2"
    flushed, folders, locks = capfd.readouterr().err.splitlines()
    assert flushed.startswith(f"slim-horovod: {tmp_path}: this file system does not flush files (")
    assert "does not flush folders (Invalid argument)" in folders
    assert locks.startswith(f"slim-horovod: {tmp_path}: this file system has no locks (No locks av")


def test_other_errors_of_a_disk_are_not_passed_over(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []
