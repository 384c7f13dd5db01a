"""`package.module:function`: what is imported, and the line about what cannot be."""

import dataclasses
import itertools
import os
import sys
from unittest import mock

import pytest
import tensorflow as tf
from input_data import create_config

import models
from models import plug_in
from trainer import __main__ as program
from trainer.checkpoints import restore, search
from trainer.config import Config, ModelConfig
from trainer.errors import ConfigError, UserError
from trainer.graph.network import build_logits
from trainer.inputs import dataset
from trainer.safety import agreement

MALFORMED = [".x:f", "..x:f", "a..b:f", ":f", "a:", "a.:f", ":", ".:f", "os..path:join"]
_numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Returns a function that writes a module and returns its name, another one at each call."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        name = f"plug_in_of_a_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize("name", ["os.path:join", "os:path.join:x", "my-nets:f", "a:b.c"])
def test_what_has_the_form_is_split(name):
    module, _, function = name.partition(":")
    assert plug_in.split(name) == (module, function)


@pytest.mark.parametrize("name", [*MALFORMED, "", "synthetic"])
def test_what_has_another_form_is_told_apart(name):
    assert plug_in.split(name) is None
    with pytest.raises(plug_in.PlugInNameError):
        plug_in.load(name)


def test_a_function_is_imported():
    assert plug_in.load("os.path:join") is os.path.join


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_names_of_data_sets_are_one_line(name):
    with pytest.raises(ConfigError) as error:
        dataset.open_dataset(create_config(dataset=name))
    assert str(error.value) == (
        f"--dataset: must be synthetic, tfrecord, folder or package.module:function, got {name!r}"
    )


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_names_of_networks_are_one_line(name):
    with pytest.raises(models.UnknownModelError) as error:
        models.get(name)
    if name.startswith("."):
        module = name.partition(":")[0]
        assert str(error.value) == f"cannot import module {module} (a relative name), got {name!r}"
    else:
        rule = f"must be one of {', '.join(models.NAMES)}, or package.module:function"
        assert str(error.value) == f"{rule}, got {name!r}"


@pytest.mark.parametrize(
    ("mode", "flag"), [("evaluate", "dataset"), ("train", "dataset"), ("describe", "model")]
)
def test_a_run_with_a_malformed_name_ends_in_one_line(monkeypatch, capsys, mode, flag):
    monkeypatch.setattr(search, "choose", lambda run: search.Chosen("model.ckpt-1"))
    monkeypatch.setattr(restore, "count_classes", lambda prefix, given: given)
    argv = [f"--mode={mode}", "--num_classes=3", f"--{flag}=.x:f"]
    with mock.patch.dict(os.environ):  # A run sets variables for its libraries.
        assert program.run(["slim-horovod", *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"slim-horovod: --{flag}: ")
    assert said.endswith("got '.x:f'\n")
    assert said.count("\n") == 1


FAULTS = {
    "syntax": ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax, at {file}:2"),
    "exception": (
        "def g():\n    raise RuntimeError('two\\nlines')\ng()\n",
        "RuntimeError: two lines, at {file}:2",
    ),
    "nothing said": ("raise KeyError\n", "KeyError, at {file}:1"),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3, at {file}:2"),
    "import": ("\nimport no_such_package\n", "No module named 'no_such_package', at {file}:2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_module_that_fails_while_it_is_imported_is_named_with_file_and_error(
    write_module, tmp_path, fault
):
    text, reason = FAULTS[fault]
    name = write_module(text)
    reason = reason.format(file=tmp_path / f"{name}.py")
    with pytest.raises(ConfigError) as error:
        dataset.open_dataset(create_config(dataset=f"{name}:f"))
    assert str(error.value) == f"--dataset: must name a function, got '{name}:f' ({reason})"
    with pytest.raises(models.UnknownModelError) as unknown:
        models.get(f"{name}:f")
    assert str(unknown.value) == f"cannot import module {name} ({reason}), got '{name}:f'"


def test_a_module_that_is_not_there_has_no_file():
    with pytest.raises(ConfigError) as error:
        dataset.open_dataset(create_config(dataset="no_such_module:f"))
    assert str(error.value) == (
        "--dataset: must name a function, got 'no_such_module:f' (No module named 'no_such_module')"
    )


@pytest.mark.parametrize("function", ["absent", "number", "b.c", "f:g"])
def test_what_is_no_function_is_refused(write_module, function):
    name = write_module("number = 3\n")
    fault = f"module {name} has no function {function}"
    with pytest.raises(ConfigError) as error:
        dataset.open_dataset(create_config(dataset=f"{name}:{function}"))
    assert str(error.value) == (
        f"--dataset: must name a function, got '{name}:{function}' ({fault})"
    )
    with pytest.raises(models.UnknownModelError) as unknown:
        models.get(f"{name}:{function}")
    assert str(unknown.value) == f"{fault}, got '{name}:{function}'"


def test_files_are_found(write_module, tmp_path):
    name = write_module("raise RuntimeError\n")  # Which is not run.
    assert plug_in.find_file(name) == tmp_path / f"{name}.py"
    for absent in ("no_such_module", "no_such_package.module", "os.path.x", "os..path"):
        assert plug_in.find_file(absent) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("def f(:\n", "SyntaxError: invalid syntax"), ("import no_such", "No module named 'no_such'")],
)
def test_workers_agree_on_no_module_whose_package_fails(tmp_path, monkeypatch, text, reason):
    monkeypatch.syspath_prepend(tmp_path)
    package = f"package_of_a_test_{next(_numbers)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(text)
    (tmp_path / package / "data.py").touch()
    config = Config()
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, dataset=f"{package}.data:f")
    )
    with pytest.raises(UserError) as error:
        agreement.code_of(config)
    assert str(error.value) == (
        f"module {package}.data: must be there on every worker, got none "
        f"({reason}, at {tmp_path / package / '__init__.py'}:1)"
    )


@pytest.mark.parametrize("name", MALFORMED)
def test_agreement_leaves_malformed_names_to_those_who_open_them(name):
    config = Config(model=ModelConfig(model=name), data=create_config(dataset=name))
    assert not [fact for fact in agreement.code_of(config) if fact.startswith("file of")]


@pytest.mark.parametrize(
    ("shape", "told"), [("[2, 1000]", r"\(2, 1000\)"), ("[2, 1, 1, 3]", r"\(2, 1, 1, 3\)")]
)
def test_logits_that_do_not_fit_the_classes_are_one_line(write_module, shape, told):
    name = write_module(
        "import tensorflow as tf\n"
        f"def f(images, num_classes, is_training):\n    return tf.zeros({shape}), {{}}\n"
    )
    message = rf"^--model: must return .* \[batch, 3\], .* got {name}:f, whose shape is {told}$"
    with tf.Graph().as_default(), pytest.raises(ConfigError, match=message):
        build_logits(
            ModelConfig(model=f"{name}:f"),
            tf.zeros([2, 8, 8, 3]),
            num_classes=3,
            is_training=False,
        )
