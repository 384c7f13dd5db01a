"""The compiled operations in use: by the variable, by the CPU, by what was built."""

import platform
import sys

import pytest
import tensorflow as tf
import tensorflow.compat.v1 as tf1
from kernels import needs_kernels
from processes import run

from trainer.cpu_kernels import gradients, library, switch
from trainer.errors import UserError
from trainer.machine import session

INSTRUCTIONS = "flags : fpu avx512f avx512bw avx512vl avx512_bf16"


def test_they_are_on_unless_turned_off():
    assert switch.read({}) == switch.Setting(is_on=True)
    assert switch.read({switch.VARIABLE: "1"}) == switch.Setting(is_on=True)
    assert switch.read({switch.VARIABLE: "0"}) == switch.Setting(is_on=False)


def test_a_library_takes_the_place_of_the_built_one(tmp_path):
    file = tmp_path / "other.so"
    file.touch()
    assert switch.read({switch.VARIABLE: str(file)}) == switch.Setting(is_on=True, library=file)


@pytest.mark.parametrize("value", ["", "yes", "01", "none.so", __file__])
def test_any_other_value_is_refused(value):
    with pytest.raises(UserError) as refused:
        switch.read({switch.VARIABLE: value})
    message = str(refused.value)
    assert message.startswith(f"{switch.VARIABLE}: must be ")
    assert message.endswith(f"got {value!r}")
    assert "\n" not in message


def test_it_can_be_read_without_tensorflow():
    code = "import sys; from trainer.cpu_kernels import switch; print('tensorflow' in sys.modules)"
    done = run([sys.executable, "-c", code])
    assert done.stdout == "False\n", done.stderr


def build_step():
    """The kinds of operations of a small graph with gradients, and its session's optimizers."""
    with tf.Graph().as_default() as graph:
        images, filters = tf.ones([1, 4, 4, 32]), tf.ones([1, 1, 32, 32])
        with gradients.overridden():
            outputs = tf.nn.conv2d(images, filters, 1, "SAME")
        gradient = tf.gradients(outputs, filters)[0]
        config = session.create_config()
        with tf1.Session(config=config) as plain:
            assert (plain.run(gradient) == 4 * 4).all()
    kinds = {operation.type for operation in graph.get_operations()}
    return kinds, [each.name for each in config.graph_options.rewrite_options.custom_optimizers]


def test_turned_off_they_are_in_no_graph_and_no_session(monkeypatch):
    monkeypatch.setenv(switch.VARIABLE, "0")
    assert library.find() is None
    assert library.describe(tf.float32) == "off"
    assert library.reason_for_none() == "SLIM_HOROVOD_KERNELS=0 turns them off"
    kinds, optimizers = build_step()
    assert "Conv2DBackpropFilter" in kinds
    assert not optimizers


@pytest.mark.skipif(switch.read().library is None, reason="these tests have the built library")
def test_the_library_that_these_tests_were_given_is_used():
    assert library.reason_for_none() == ""
    assert library.describe(tf.bfloat16) == "on"


@needs_kernels
def test_one_process_can_turn_them_off_and_on(monkeypatch):
    is_used = []
    given = switch.read().library
    turned_on = "1" if given in (None, library.LIBRARY) else str(given)
    for value in ("0", turned_on, "0"):
        monkeypatch.setenv(switch.VARIABLE, value)
        kinds, optimizers = build_step()
        assert ("SlimHorovodFilterGradient" in kinds) == (optimizers == [library.OPTIMIZER])
        is_used.append(library.describe(tf.float32) == "on" and bool(optimizers))
    assert is_used == [False, True, False]


@pytest.mark.parametrize("wrong", ["2", "none.so"])
def test_a_wrong_value_ends_what_asks(monkeypatch, wrong):
    monkeypatch.setenv(switch.VARIABLE, wrong)
    asked = (library.find, library.reason_for_none, lambda: library.describe(tf.float32))
    for ask in asked:
        with pytest.raises(UserError, match=switch.VARIABLE):
            ask()


def test_a_named_library_that_can_not_be_loaded_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    file = tmp_path / "cut.so"
    file.write_bytes(b"\x7fELF")
    monkeypatch.setenv(switch.VARIABLE, str(file))
    assert library.reason_for_none().startswith(library.NOT_LOADED)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])


@pytest.fixture
def built_ones(monkeypatch):
    """Asks for the operations that setup.py builds, whatever the tests run with."""
    monkeypatch.delenv(switch.VARIABLE, raising=False)


@pytest.mark.usefixtures("no_gpu", "built_ones")
@pytest.mark.parametrize(
    ("cpuinfo", "reason"),
    [
        (INSTRUCTIONS, "they were not built"),
        (f"{INSTRUCTIONS} amx_bf16", "they were not built"),
        ("flags : fpu avx2 avx512f", "this CPU lacks AVX-512 with bfloat16"),
        (None, "this CPU lacks AVX-512 with bfloat16"),
    ],
)
def test_where_there_are_none_the_reason_is_told(tmp_path, cpuinfo, reason):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert library.reason_for_none(file, tmp_path / "none.so") == reason


@pytest.mark.usefixtures("no_gpu", "built_ones")
def test_a_library_that_can_not_be_loaded_is_told(tmp_path):
    cpuinfo, damaged = tmp_path / "cpuinfo", tmp_path / "kernels.so"
    cpuinfo.write_text(INSTRUCTIONS)
    damaged.write_bytes(b"\x7fELF")
    assert library.reason_for_none(cpuinfo, damaged).startswith(library.NOT_LOADED)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="setup.py builds none for this machine")
def test_setup_has_built_them():
    assert library.LIBRARY.exists()
