"""A program starts without libraries that it does not use, and ends without taking others apart."""

import ast
import contextlib
import gc
import sys

import pytest
from processes import run

from trainer.process import start_up

# What a training worker loads; then what a plug-in may use of the libraries that were left out.
START = """
import sys
from trainer.process import start_up

with start_up.without_notes(), start_up.without_the_unused():
    import tensorflow as tf
import horovod.tensorflow as hvd
import trainer.modes.train
unused = {"h5py", "keras", "matplotlib", "scipy", "sklearn"}
print(sorted(unused & sys.modules.keys()))

from tf_slim.losses import metric_learning
print(metric_learning.metrics.v_measure_score([0, 0, 1, 1], [5, 5, 3, 3]))
print(tf.keras.layers.Dense(3)(tf.ones([2, 5])).shape)
print(issubclass(hvd.SyncBatchNormalization, tf.keras.layers.BatchNormalization))
print(hasattr(hvd, "SyncBatchNormalisation"))
"""
BEGIN_END = """
import atexit, ctypes, sys, threading, time
from trainer.process.quick_exit import QuickExit

class Library:
    def __del__(self):
        print("taken apart", flush=True)

library = Library()
library.itself = library
end = QuickExit()
"""
ENDS = {
    "a status": ("end.exit(75)", 75, [], ""),
    "what was printed": ("print('last'); end.exit(0)", 0, ["last"], ""),
    "what a library printed": ("ctypes.CDLL(None).puts(b'of C'); end.exit(0)", 0, ["of C"], ""),
    "what is registered": ("atexit.register(print, 'at exit'); end.exit(3)", 3, ["at exit"], ""),
    "a thread": (
        "threading.Timer(0.2, print, ['thread']).start(); end.exit(0)",
        0,
        ["thread"],
        "",
    ),
    # Those who did not call `exit` end as ever.
    "an exception": ("1 / 0", 1, ["taken apart"], "ZeroDivisionError: division by zero"),
    "another exit": ("sys.exit(4)", 4, ["taken apart"], ""),
}
# Stands for a launcher: it takes a while, then starts a worker, which leaves its keeper behind.
LAUNCHER = """#!/bin/sh
sleep 0.7
{python} -c '
import os, time
from trainer.process import start_up

if os.fork():
    os.wait()
    os._exit(0)
time.sleep(0.3)
print(start_up.times_up_to_now())
'
"""


def run_code(code):
    return run([sys.executable, "-c", code])


@pytest.mark.slow
@pytest.mark.processes
def test_keras_and_what_it_loads_are_loaded_when_they_are_used():
    done = run_code(START)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "1.0", "(2, 3)", "True", "False"]


@pytest.mark.parametrize("end", ENDS)
def test_the_end_is_quick_and_loses_nothing(end):
    code, status, printed, error = ENDS[end]
    done = run_code(BEGIN_END + code)
    assert (done.returncode, done.stdout.splitlines()) == (status, printed)
    assert done.stderr.endswith(f"{error}\n" if error else "")


def test_an_output_that_nobody_reads_any_more_is_told():
    code = f"{BEGIN_END}import os; r, w = os.pipe(); os.dup2(w, 1); os.close(w); os.close(r)\n"
    done = run_code(f"{code}print('lost'); end.exit(0)")
    assert done.returncode != 0
    assert "BrokenPipeError" in done.stderr


@pytest.mark.processes
def test_the_time_before_the_first_line_is_told_from_the_launchers_start_on(tmp_path):
    launcher = tmp_path / "mpirun"
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    done = run([launcher])
    told = ast.literal_eval(done.stdout)
    assert list(told) == ["launcher", "imports"]
    assert told["launcher"] >= 0.65  # The kernel counts in ticks.
    assert told["imports"] >= 0.25


@pytest.mark.processes
def test_without_a_launcher_the_time_since_the_start_of_the_process_is_told():
    done = run_code(
        "import time; from trainer.process import start_up; time.sleep(0.3);"
        "print(start_up.times_up_to_now())"
    )
    told = ast.literal_eval(done.stdout)
    assert list(told) == ["imports"]
    assert told["imports"] >= 0.25


def test_garbage_is_collected_again_after_what_stays_was_made():
    assert gc.isenabled()
    with contextlib.suppress(ZeroDivisionError), start_up.without_collection():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
