"""Refusals of setup.sh, before it has changed anything. What it makes, the doctor proves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parent.parent / "scripts" / "setup.sh"


def run_setup(*arguments, **environ):
    return subprocess.run(
        [SETUP, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        timeout=60,
        check=False,
    )


def stand_in(folder, name):
    """A version manager's stand-in for a Python that is not installed."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho 'pyenv: {name}: command not found' >&2\nexit 127\n")
    file.chmod(0o755)
    return file


def test_help_tells_every_option():
    said = run_setup("--help")
    assert said.returncode == 0
    for option in ("--gpu", "--cpu", "--venv DIR", "--python EXE"):
        assert option in said.stdout


@pytest.mark.parametrize("arguments", [["--fast"], ["--venv"], ["--python", ""], ["more"]])
def test_a_wrong_argument_is_one_line(arguments):
    said = run_setup(*arguments)
    assert said.returncode == 1
    assert said.stderr.startswith("setup.sh: ")
    assert said.stderr.count("\n") == 1
    assert "--help" in said.stderr


def test_a_folder_that_it_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    said = run_setup("--cpu", "--venv", str(tmp_path), "--python", sys.executable)
    assert said.returncode == 1
    assert f"--venv: must be new or made by this script, got '{tmp_path}'" in said.stderr
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_python_that_is_not_there_is_refused(tmp_path):
    shim = stand_in(tmp_path / "shims", "python3.13")
    said = run_setup("--venv", str(tmp_path / "venv"), f"--python={shim}")
    assert said.returncode == 1
    assert f"got '{shim}'" in said.stderr
    assert not (tmp_path / "venv").exists()


def test_a_stand_in_for_a_python_is_passed_over(tmp_path):
    shims = stand_in(tmp_path / "shims", "python3.13").parent
    path = os.pathsep.join([str(shims), str(Path(sys.executable).parent), os.environ["PATH"]])
    # The missing compiler ends the set-up right after a Python was found.
    said = run_setup("--cpu", "--venv", str(tmp_path / "a b"), PATH=path, CXX="no-such-compiler")
    assert said.returncode == 1
    assert said.stderr.startswith("build_horovod: a C++ compiler (no-such-compiler) is needed")
    assert said.stderr.count("\n") == 1


def test_an_environment_that_is_active_is_not_made_by_its_own_python(tmp_path):
    """It would be gone before it made the new one."""
    venv, called = tmp_path / "venv", tmp_path / "called"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    first = venv / "bin" / "python3.13"  # The first that is looked for.
    if not first.exists():  # It is there where 3.13 runs this test.
        first.symlink_to("python")
    (venv / ".slim-horovod").mkdir()
    (packages,) = venv.glob("lib/python3*/site-packages")
    # Not sitecustomize.py: Debian's Python has one already.
    line = f"import sys; print(sys.argv, file=open({str(called)!r}, 'a'))\n"
    (packages / "called.pth").write_text(line)
    path = os.pathsep.join(
        [str(venv / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    said = run_setup("--cpu", "--venv", str(venv), PATH=path, CXX="no-such-compiler")
    assert said.returncode == 1
    assert "a C++ compiler" in said.stderr
    assert "-c" in called.read_text()  # It was looked at.
    assert "build.py" not in called.read_text()
