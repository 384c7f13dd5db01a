"""Standard streams: nobody waits for whoever reads them, and nothing that is read is lost."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from processes import ROOT, environment

from trainer.process import streams

PIPE_BYTES = 4096  # The smallest that a pipe can have: fewer than 50 lines.
LINES = [b"%07d\n" % number for number in range(100_000)]


@pytest.fixture
def pipe():
    """The ends of a pipe that takes 4096 bytes."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield read, write
    for end in (read, write):
        with contextlib.suppress(OSError):  # The test has closed it.
            os.close(end)


def read_all(descriptor, into):
    while data := os.read(descriptor, 65536):
        into.append(data)


def fill(read, printer, lines):
    """Prints lines into a pipe of which the printer's thread soon has to wait for a reader."""
    printer.put(b"~" * (PIPE_BYTES - 1) + b"\n")
    while struct.unpack("i", fcntl.ioctl(read, termios.FIONREAD, b"\0" * 4))[0] < PIPE_BYTES:
        time.sleep(0.01)
    for line in lines:
        printer.put(line)


def read_to_the_end(read, write, printer):
    """The lines that come out of a pipe."""
    got = []
    reader = threading.Thread(target=read_all, args=(read, got))
    reader.start()
    printer.drain()
    os.close(write)
    reader.join()
    return b"".join(got).splitlines(keepends=True)


def test_the_oldest_of_too_many_lines_are_dropped_and_counted(pipe):
    read, write = pipe
    printer = streams.Printer(write, max_waiting_bytes=80_000)
    fill(read, printer, LINES)
    lines = read_to_the_end(read, write, printer)[1:]
    reached, notes = 0, 0
    for line in lines:
        if note := re.fullmatch(rb"slim-horovod: (\d+) lines dropped here: nobody .*\n", line):
            reached += int(note[1])
            notes += 1
        else:
            assert line == LINES[reached]
            reached += 1
    assert reached == len(LINES)
    # The thread has one line in hand while others are dropped: which one is up to it.
    assert notes in (1, 2)
    assert len(lines) - notes in (10_000, 10_001)


def test_parts_of_lines_are_put_together_where_some_are_dropped(pipe):
    read, write = pipe
    printer = streams.Printer(write, max_waiting_bytes=8_000)
    fill(read, printer, [part for line in LINES for part in (line[:3], line[3:])])
    lines = read_to_the_end(read, write, printer)
    assert lines[-1_000:] == LINES[-1_000:]
    assert {len(line) for line in lines[-1_000:]} == {8}


def test_a_progress_bar_that_nobody_sees_takes_no_memory(pipe):
    read, write = pipe
    printer = streams.Printer(write, max_waiting_bytes=8_000)
    fill(read, printer, [b"\r%07d" % number for number in range(100_000)])
    assert sum(map(len, printer._lines)) <= 8_000
    assert read_to_the_end(read, write, printer)[-1] == b"0099999"


def test_the_end_does_not_wait_for_a_reader_that_never_comes(pipe):
    _, write = pipe
    printer = streams.Printer(write)
    printer.put(b"x" * 100_000)
    printer.drain(patience_sec=0.2)
    assert printer._lines or printer._is_busy


def test_the_end_waits_for_a_slow_reader(pipe):
    read, write = pipe
    printer = streams.Printer(write)
    text = b"".join(LINES[:8_000])
    printer.put(text)
    got = []

    def read_slowly():
        while data := os.read(read, 2048):
            got.append(data)
            time.sleep(0.01)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    printer.drain(patience_sec=1.0)
    os.close(write)
    reader.join()
    assert b"".join(got) == text


def test_a_reader_that_is_gone_is_no_error(pipe):
    read, write = pipe
    os.close(read)
    printer = streams.Printer(write)
    for line in LINES[:100]:
        printer.put(line)
    printer.drain()
    assert not printer._lines


def test_lines_wait_for_room_on_a_disk(tmp_path):
    """A limit of the file's size stands for a full disk, and gives way as that may."""
    code = (
        "import resource, signal; from trainer.process import streams\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))\n"
        "streams.never_wait()\n"
        "print('first line'); print('second'); streams.drain()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "print('third')\n"
    )
    path = tmp_path / "lines"
    with open(path, "w") as file:
        subprocess.run(
            [sys.executable, "-c", code], stdout=file, check=True, cwd=ROOT, env=environment()
        )
    assert path.read_text() == "first line\nsecond\nthird\n"


def test_a_full_disk_does_not_keep_a_program_from_its_end():
    code = "from trainer.process import streams; streams.never_wait(); print('lost')"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, check=False, cwd=ROOT, env=environment()
        )
    assert done.returncode == 0


@pytest.mark.slow
def test_a_run_trains_whatever_becomes_of_its_first_line(tmp_path):
    result = tmp_path / "result.json"
    flags = ["--steps=1", "--image_size=32", "--batch_size=2", f"--result_json={result}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *flags],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment(),
        )
    assert done.returncode == 0, done.stderr
    assert result.exists()


def test_both_streams_keep_their_order_where_they_are_one_file(tmp_path):
    code = (
        "import sys; from trainer.process import streams; streams.never_wait()\n"
        "for number in range(1000): print(number, file=(sys.stdout, sys.stderr)[number % 2])\n"
        "raise ValueError('the end')\n"
    )
    path = tmp_path / "lines"
    with open(path, "w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=ROOT,
            env=environment(),
        )
    lines = path.read_text().splitlines()
    assert lines[:1000] == [str(number) for number in range(1000)]
    assert (done.returncode, lines[1000], lines[-1]) == (
        1,
        "Traceback (most recent call last):",
        "ValueError: the end",
    )


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_whose_output_nobody_reads_is_finished(pipe, tmp_path):
    read, write = pipe
    command = [
        *(sys.executable, "-m", "trainer", "--dataset=synthetic", "--num_classes=4"),
        *("--model=tiny:network", "--image_size=32", "--batch_size=2"),
        *("--steps=60", "--log_every=1", f"--logdir={tmp_path}"),
    ]
    with subprocess.Popen(
        command, stdout=write, stderr=write, cwd=ROOT, env=environment()
    ) as process:
        assert process.wait(300) == 0
    os.close(write)
    got = []
    read_all(read, got)
    assert b"step 1/60" in b"".join(got)
    assert b"step 60/60" not in b"".join(got)
    status = (tmp_path / "status.json").read_text()
    assert '"finished", "step": 60' in status


def read_terminal(descriptor):
    """All that is written to a terminal until its last writer has closed it."""
    got = []
    with contextlib.suppress(OSError):  # EIO is the end.
        while data := os.read(descriptor, 4096):
            got.append(data)
    return b"".join(got).decode().splitlines()


@pytest.mark.processes
@pytest.mark.parametrize("flags", [[], ["--prefix-output-with-timestamp"]])
def test_under_horovodrun_the_first_worker_writes_to_the_terminal_itself(flags):
    ours, terminal = os.openpty()
    command = ["horovodrun", *flags, "-np", "2", sys.executable, "-m", "trainer", "--version"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=terminal, stderr=subprocess.PIPE, text=True
    ) as launcher:
        os.close(terminal)
        lines = read_terminal(ours)
        _, errors = launcher.communicate()
    os.close(ours)
    # Two programs write to the terminal: a mark need not stand at the beginning of a line.
    marks = sorted(re.findall(r"\[\d\]<stdout>:", "\n".join(lines)))
    assert sum("slim-horovod " in line for line in lines) == 2, (lines, errors)
    assert marks == (["[0]<stdout>:"] if flags else []) + ["[1]<stdout>:"], lines


@pytest.mark.processes
def test_a_reader_that_ends_early_ends_the_program_without_a_word():
    command = [sys.executable, "-m", "trainer", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait() == 128 + signal.SIGPIPE
