"""Each way in which an installation breaks gets its reason and its remedy, in one line."""

import os
import sys
import time
from importlib import metadata

import pytest
import tensorflow as tf

from trainer.config import Config
from trainer.cpu_kernels import switch
from trainer.modes import doctor
from trainer.modes.doctor import allreduce, children, libraries, packages, probe_libraries
from trainer.modes.doctor.finding import Finding
from trainer.process import settings


def broken(findings):
    return [finding for finding in findings if finding.remedy is not None]


def with_version(monkeypatch, name, version):
    real = metadata.version

    def fake(asked):
        if asked != name:
            return real(asked)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", fake)


@pytest.mark.parametrize("name", ["tensorflow", "tf-slim", "horovod", "slim-horovod"])
def test_a_missing_package_is_named(monkeypatch, name):
    with_version(monkeypatch, name, None)
    (finding,) = broken(packages.check_packages())
    assert finding == (name, "is not installed for this Python", "run scripts/setup.sh")


@pytest.mark.parametrize(("name", "version"), [("tensorflow", "2.16.1"), ("horovod", "0.27.0")])
def test_a_wrong_version_is_held_against_its_rule(monkeypatch, name, version):
    with_version(monkeypatch, name, version)
    (finding,) = broken(packages.check_packages())
    assert finding.title == name
    assert finding.text.startswith(f"{version} does not fit ")
    assert finding.remedy == "run scripts/setup.sh"


def test_this_environments_packages_are_right():
    assert broken(packages.check_packages()) == []


def test_horovod_for_another_tensorflow_is_told_by_what_it_was_built_for(monkeypatch):
    monkeypatch.setattr(libraries, "read_text", lambda path: '{"tensorflow": "2.12.0"}')
    (finding,) = libraries.check_horovod(
        {"error": "NotFoundError: mpi_lib.so: undefined symbol: _ZN3"}
    )
    here = metadata.version("tensorflow")
    assert finding.text == f"was built for TensorFlow 2.12.0, but here is {here}"
    assert "scripts/setup.sh" in finding.remedy


def test_horovod_that_does_not_load_is_told_by_the_first_line_of_its_error():
    (finding,) = libraries.check_horovod({"error": "ImportError: libmpi.so.40: no such file\nmore"})
    assert finding.text == "can't be loaded (ImportError: libmpi.so.40: no such file)"
    assert finding.remedy is not None


@pytest.mark.parametrize(
    ("kernels", "text", "remedy"),
    [
        ({}, "compiled for this CPU's AVX-512", None),
        ({"library": "/other.so"}, "/other.so, as given", None),
        (
            {"convolutions": "it has it"},
            "compiled for this CPU's AVX-512; convolutions of bfloat16 are TensorFlow's: it has it",
            None,
        ),
        ({"missing": "they were not built"}, "TensorFlow's own: they were not built", None),
        (
            {"missing": "they can't be loaded (cut)", "broken": True},
            "TensorFlow's own: they can't be loaded (cut)",
            "run scripts/setup.sh",
        ),
        (
            {"missing": "they can't be loaded (cut)", "broken": True, "library": "/cut.so"},
            "TensorFlow's own: they can't be loaded (cut)",
            "name a library that was built for this TensorFlow, not /cut.so",
        ),
        ({"wrong": "NAME: must be", "broken": True}, "NAME: must be", "correct or unset it"),
    ],
)
def test_which_kernels_are_used_is_told(kernels, text, remedy):
    texts = dict.fromkeys(("wrong", "missing", "library", "convolutions"), "")
    kernels = {**texts, "broken": False, **kernels}
    findings = list(
        libraries.check_devices({"cpu": "a CPU", "cores": 2, "gpus": 0, "kernels": kernels})
    )
    assert [found[1:] for found in findings if found.title == "kernels"] == [(text, remedy)]
    assert [finding.title for finding in broken(findings)] == ["kernels"] * (remedy is not None)


@pytest.mark.parametrize("value", ["on", "none.so"])
def test_a_wrong_choice_of_kernels_is_no_fault_of_the_installation(monkeypatch, value):
    monkeypatch.setenv(switch.VARIABLE, value)
    found = probe_libraries.tensorflow()["kernels"]
    assert found["wrong"].startswith(f"{switch.VARIABLE}: must be ")
    assert found["wrong"].endswith(f"got {value!r}")


def test_a_library_of_kernels_that_does_not_load_is_told_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    file = tmp_path / "cut.so"
    file.write_bytes(b"\x7fELF")
    monkeypatch.setenv(switch.VARIABLE, str(file))
    found = probe_libraries.tensorflow()["kernels"]
    assert (found["library"], found["broken"]) == (str(file), True)


def test_every_setting_is_reported_and_whose_it_is(monkeypatch):
    for setting in settings.SETTINGS:
        monkeypatch.delenv(setting.name, raising=False)
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "7")
    found = [finding.text for finding in libraries.check_settings(Config(), has_gpu=False)]
    assert "HOROVOD_CYCLE_TIME=7 (as given)" in found
    assert any(text.startswith("GLIBC_TUNABLES=glibc.malloc.hugetlb=1") for text in found)
    monkeypatch.delenv("HOROVOD_CYCLE_TIME")
    found = [finding.text for finding in libraries.check_settings(Config(), has_gpu=False)]
    assert "HOROVOD_CYCLE_TIME=100 (set before Horovod starts)" in found


def test_slim_that_builds_no_update_ops_is_broken():
    assert broken(libraries.check_slim({"updates": 0}))
    assert broken(libraries.check_slim({"error": "AttributeError: Tensor"}))
    assert not broken(libraries.check_slim({"updates": 2}))


def test_a_missing_launcher_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    finding = allreduce.check_allreduce()
    assert str(tmp_path / "horovodrun") in finding.text
    assert finding.remedy is not None


def test_a_crash_while_a_library_loads_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", ("-c", "import os; os.abort()"))
    (finding,) = broken(doctor.examine())
    assert finding.title == "tensorflow"
    assert finding.text == "ends the process that loads it (SIGABRT)"


@pytest.mark.processes
def test_processes_that_do_not_end_are_ended():
    start = time.monotonic()
    sleep = "import subprocess; subprocess.run(['sleep', '60'])"
    assert children.run_python("-c", sleep, timeout_sec=0.5).errors == "no end after 0.5 s"
    assert time.monotonic() - start < 20


def test_the_status_says_whether_anything_is_broken(monkeypatch, capsys):
    good, bad = Finding("python", "3.11"), Finding("slim", "fails", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    assert doctor.run() == 0
    monkeypatch.setattr(doctor, "examine", lambda: [good, bad])
    assert doctor.run() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["slim", "BROKEN:", "fails:", "mend", "it"]
    assert len(lines) == 3


@pytest.mark.processes
def test_two_workers_average_their_ranks():
    finding = allreduce.check_allreduce()
    assert finding.remedy is None, finding
    assert finding.text.startswith("2 workers, on ")


@pytest.mark.processes
def test_a_launcher_that_fails_is_told_by_its_last_words(monkeypatch, tmp_path):
    launcher = tmp_path / "horovodrun"
    launcher.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 1\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / os.path.basename(sys.executable)))
    finding = allreduce.check_allreduce()
    assert "no route to host" in finding.text
    assert finding.remedy is not None
