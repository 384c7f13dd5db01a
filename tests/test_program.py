"""scripts/shared: scripts find their environment, and tell what is wrong in a line."""

import os
import signal
import subprocess
import sys

from shared import program

import pytest
from processes import ROOT, environment

from trainer.process import texts

BARE = [f"{sys.base_prefix}/bin/python3", "-S"]  # Without any installed package.


def start(*command, **environ):
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**environ),
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("venv", [sys.prefix, f"{sys.prefix}/../{os.path.basename(sys.prefix)}"])
def test_a_script_finds_the_environment_that_is_not_activated(tmp_path, venv):
    said = start(
        *(*BARE, "scripts/make_tfrecords.py", f"--images={tmp_path}/no", f"--out={tmp_path}/out"),
        SLIM_HOROVOD_VENV=venv,
    )
    assert said.returncode == 1
    assert (
        f"make_tfrecords.py: --images: must be a folder that exists, got '{tmp_path}" in said.stderr
    )


@pytest.mark.parametrize(("command", "status"), [(["scripts/soak.py"], 1), (["-m", "trainer"], 2)])
def test_without_an_environment_there_is_one_line(tmp_path, command, status):
    said = start(*BARE, *command, SLIM_HOROVOD_VENV=tmp_path)
    assert said.returncode == status
    assert said.stderr.startswith("slim-horovod: ")
    assert "scripts/setup.sh" in said.stderr
    assert said.stderr.count("\n") == 1


def test_in_a_half_made_environment_a_script_does_not_begin_again_for_ever(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "half"], check=True)
    winding = tmp_path / "half" / ".." / "half"
    said = start(winding / "bin" / "python", "scripts/soak.py", SLIM_HOROVOD_VENV=winding)
    assert said.returncode == 1
    assert f"{tmp_path}/half has no complete environment" in said.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["soak.py", "--out=DIR/new", "nosuch"], "soak.py: nosuch: no such program"),
        (["soak.py", "--out=DIR", "true"], "soak.py: --out: must be new, got DIR"),
        (["soak.py", "--out=DIR/new", "true"], "soak.py: the command must leave a checkpoint"),
        (["soak.py", "--out=DIR/new", "false"], "soak.py: the undisturbed run failed: see DIR/new"),
        (
            ["soak.py", "--out=DIR/new", "--kills=-3", "true"],
            "--kills: must be at least 0, got '-3'",
        ),
        (["report.py", "DIR/none"], "report.py: DIR/none is no folder: give the --logdir of a run"),
        (["benchmark_input.py", "--data_dir=DIR/none"], "benchmark_input.py: --data_dir: "),
        (["benchmark_input.py", "--rounds=0"], "--rounds: must be at least 1, got '0'"),
        (["compare_peers.py", "--batch_size=0"], "--batch_size: must be at least 1, got '0'"),
        (["compare_peers.py", "--venv=tests"], "compare_peers.py: --venv: must be new"),
        (
            ["make_tfrecords.py", "--images=DIR", "--out=README.md"],
            "make_tfrecords.py: --out: must be writable, got ",
        ),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_told_in_the_last_line(tmp_path, command, line):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "1.png").touch()
    name, *arguments = (word.replace("DIR", str(tmp_path)) for word in command)
    said = start(sys.executable, f"scripts/{name}", *arguments)
    assert said.returncode in (1, 2)
    assert "Traceback" not in said.stderr
    assert line.replace("DIR", str(tmp_path)) in said.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "0.4", "one", ""])
def test_numbers_have_a_least_value_and_are_finite(text):
    with pytest.raises(program.argparse.ArgumentTypeError, match=r"must be at least 0.5, got '"):
        program.at_least(0.5, float)(text)


def test_an_interrupted_script_ends_as_a_shell_expects(capsys):
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as end:
        program.run(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err == "test_program.py: interrupted\n"


def test_a_script_ends_quietly_when_nobody_reads_on():
    code = "from shared import program; program.run(lambda: [print(n) for n in range(100_000)])"
    command = f"{sys.executable} -c '{code}' | head -1; echo ${{PIPESTATUS[0]}}"
    done = start("bash", "-c", f"PYTHONPATH=$PYTHONPATH:{ROOT}/scripts; {command}")
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


def test_a_script_whose_output_is_closed_ends_as_it_would():
    code = "from shared import program; program.run(lambda: 3)"
    command = f"PYTHONPATH=$PYTHONPATH:{ROOT}/scripts {sys.executable} -c '{code}' >&-"
    done = start("bash", "-c", f"{command}; echo $? >&2")
    assert done.stderr == "3\n"


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(program.path("~/runs")) == "/home/somebody/runs"
    assert str(program.path("runs/~")) == "runs/~"


NAMES = {
    "größe 猫": "größe 猫",
    "latin\udce9": "latin\\udce9",
    "क्\u200dष": "क्\u200dष",
    "new\nline\ttab": "new\\nline\\ttab",
    "\x1b[31m": "\\x1b[31m",
}


def test_any_name_is_one_line_of_valid_text():
    assert {name: texts.printable(name) for name in NAMES} == NAMES


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_any_text_can_be_printed(encoding):
    code = (
        "import sys; from trainer.process import streams; streams.print_anything()\n"
        "for stream in (sys.stdout, sys.stderr): print('latin\\udce9 猫', file=stream)"
    )
    said = start(sys.executable, "-c", code, PYTHONIOENCODING=encoding)
    assert said.returncode == 0, said.stderr
    assert said.stdout == said.stderr
    assert said.stdout.startswith("latin\\udce9 ")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Graph execution error:\n\nno UTF-8", "no UTF-8"),
        (
            "Graph execution error:\n\nDetected at node 'save/SaveV2' defined at (most recent call "
            "last):\n  File 'store.py', line 8, in save\nNode: 'save/SaveV2'\n"
            "/disk/a; No space left on device\n\t [[{{node save/SaveV2}}]]",
            "/disk/a; No space left on device",
        ),
        ("one\ntwo", "one"),
        ("", "ValueError"),
    ],
)
def test_an_error_in_one_line_says_something(message, expected):
    assert texts.first_line(ValueError(message)) == expected
