"""Horovod's build: what it needs, and which wheel is taken for which environment."""

import os
import zipfile

import build
import pytest
from processes import ROOT

CHANGES = {"speed/01-a.patch": "@@ -1 +1 @@", "shared.h": "#pragma once"}
VERSIONS = {"horovod": "0.28.1", "tensorflow": "2.21.0", "python": "3.11", "mpi": "none"}
BUILD = build.Build(VERSIONS, {"HOROVOD_WITH_GLOO": "1"}, {})


def test_the_pinned_source_is_the_version_that_the_patches_are_for():
    assert f"horovod=={build.HOROVOD_VERSION} " in build.REQUIREMENT.read_text()
    assert f'"horovod=={build.HOROVOD_VERSION}"' in (ROOT / "setup.py").read_text()


def test_the_cache_key_depends_on_every_ingredient():
    ingredients = [
        *((VERSIONS | {changed: "other"}, BUILD.settings, CHANGES) for changed in VERSIONS),
        (VERSIONS, {"HOROVOD_WITH_GLOO": "0"}, CHANGES),
        *((VERSIONS, BUILD.settings, CHANGES | {changed: "other"}) for changed in CHANGES),
        (VERSIONS, BUILD.settings, {}),
        (VERSIONS, BUILD.settings, CHANGES),
    ]
    keys = {
        build.cache_key(versions, settings, changes=changes)
        for versions, settings, changes in ingredients
    }
    assert len(keys) == len(ingredients)


def test_the_cache_is_the_users_where_it_can_be_written(tmp_path):
    home, fallback = tmp_path / "home", tmp_path / "fallback"
    environ = {"HOME": str(home)}
    assert build.cache_folder(environ, fallback) == home / ".cache" / "slim-horovod"
    environ["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    assert build.cache_folder(environ, fallback) == tmp_path / "xdg" / "slim-horovod"
    blocked = tmp_path / "file"
    blocked.touch()  # Not even root can make a folder in it.
    environ = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked)}
    assert build.cache_folder(environ, fallback) == fallback
    assert build.cache_folder({}, fallback) == fallback


def test_a_wheel_is_built_once_and_again_where_the_cached_one_is_damaged(tmp_path, monkeypatch):
    built = []

    def build_wheel(build, folder):
        built.append(build)
        wheel = folder / "horovod-0.28.1-cp311.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("horovod/metadata.json", "{}")
        return wheel

    monkeypatch.setattr(build, "build_wheel", build_wheel)
    wheel = build.cached_wheel(BUILD, tmp_path)
    whole = wheel.read_bytes()
    assert build.cached_wheel(BUILD, tmp_path) == wheel
    assert len(built) == 1
    wheel.write_bytes(whole[: len(whole) // 2])
    assert build.cached_wheel(BUILD, tmp_path) == wheel
    assert wheel.read_bytes() == whole
    assert len(built) == 2
    assert os.listdir(wheel.parent) == [wheel.name]


def test_another_patch_or_header_is_another_wheel(tmp_path, monkeypatch):
    built = []

    def build_wheel(build, folder):
        wheel = folder / "horovod-0.28.1-cp311.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("horovod/build.txt", str(len(built)))
        built.append(wheel)
        return wheel

    monkeypatch.setattr(build, "build_wheel", build_wheel)
    wheels = {build.cached_wheel(BUILD, tmp_path)}
    header = tmp_path / "header.h"
    header.write_text("#pragma once\n")
    monkeypatch.setattr(build, "HEADER", header)
    wheels.add(build.cached_wheel(BUILD, tmp_path))
    monkeypatch.setattr(build, "read_patches", lambda: CHANGES)
    wheels.add(build.cached_wheel(BUILD, tmp_path))
    assert len(wheels) == len(built) == 3


def test_the_build_folder_has_no_space_in_its_path(tmp_path, monkeypatch):
    spaced = tmp_path / "with space"
    spaced.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spaced))
    with build.scratch_folder() as folder:
        assert " " not in folder


@pytest.mark.parametrize(("said", "expected"), [(None, "80,90"), ("9.0\n8.6\n9.0", "86,90")])
def test_gpu_architectures_are_those_of_the_gpus_here(monkeypatch, said, expected):
    monkeypatch.setattr(build, "command_output", lambda *command: said)
    assert build.gpu_architectures() == expected


def test_a_missing_compiler_is_one_line_that_names_the_packages(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in ("no-such-compiler", "build-essential", "gcc-c++"):
        assert word in said


def test_a_missing_nvcc_is_one_line_that_names_the_packages(monkeypatch, capsys):
    monkeypatch.setattr(build, "find_compiler", lambda: "12")
    monkeypatch.setattr(build, "command_output", lambda *command: None)
    assert build.main(["--check", "--gpu"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in ("nvcc", "nvidia-cuda-toolkit", "--cpu"):
        assert word in said


def test_the_toolkit_is_found_through_a_wrapper_of_nvcc(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.88" '
        "|| echo '#$ _HERE_=/opt/cuda-13/bin' >&2\n"
    )
    nvcc.chmod(0o755)
    found = build.find_cuda({"CUDA_HOME": str(tmp_path)})
    assert (str(found[0]), found[1]) == ("/opt/cuda-13", "13.0")
