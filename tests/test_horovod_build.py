"""Edits apply to the source that they were written for, and to no other; wheels are told apart."""

import os
import zipfile

import apply
import build
import pytest

EDIT = apply.Edit("src/a.cc", "reserve(size);\n", "resize(size);\n")
VERSIONS = {"horovod": "0.28.1", "tensorflow": "2.21.0", "python": "3.11", "mpi": "none"}
BUILD = build.Build(VERSIONS, {"HOROVOD_WITH_GLOO": "1"}, {})


def write_source(folder, text):
    file = folder / EDIT.path
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_an_edit_replaces_its_passage_and_nothing_else(tmp_path):
    file = write_source(tmp_path, "begin\nreserve(size);\nend\n")
    apply.apply_edit(tmp_path, EDIT)
    assert file.read_text() == "begin\nresize(size);\nend\n"


@pytest.mark.parametrize("count", [0, 2])
def test_an_edit_refuses_a_source_without_or_with_two_such_passages(tmp_path, count):
    text = "begin\n" + EDIT.old * count
    file = write_source(tmp_path, text)
    with pytest.raises(apply.EditError, match=rf"^src/a\.cc: .* found {count} times: 'res"):
        apply.apply_edit(tmp_path, EDIT)
    assert file.read_text() == text


def test_an_edit_refuses_a_source_without_its_file(tmp_path):
    with pytest.raises(apply.EditError, match=r"no src/a\.cc"):
        apply.apply_edit(tmp_path, EDIT)


@pytest.mark.parametrize("edit", apply.EDITS, ids=lambda edit: edit.path)
def test_no_edit_can_be_made_twice(tmp_path, edit):
    file = tmp_path / edit.path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(edit.old)
    apply.apply_edit(tmp_path, edit)
    if edit.path != "CMakeLists.txt":  # This edit only adds lines, below one that it keeps.
        with pytest.raises(apply.EditError):
            apply.apply_edit(tmp_path, edit)


def test_the_pinned_source_is_the_version_that_the_edits_are_for():
    assert f"horovod=={build.HOROVOD_VERSION} " in build.REQUIREMENT.read_text()


def test_the_cache_key_depends_on_every_ingredient():
    keys = {
        build.cache_key(VERSIONS | {changed: "other"}, BUILD.settings, [EDIT])
        for changed in VERSIONS
    }
    keys.add(build.cache_key(VERSIONS, {"HOROVOD_WITH_GLOO": "0"}, [EDIT]))
    keys.add(build.cache_key(VERSIONS, BUILD.settings, []))
    keys.add(build.cache_key(VERSIONS, BUILD.settings, [EDIT._replace(new="other")]))
    keys.add(build.cache_key(VERSIONS, BUILD.settings, [EDIT]))
    assert len(keys) == len(VERSIONS) + 4


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
