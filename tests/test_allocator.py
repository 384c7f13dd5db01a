"""A process starts itself again with the C library's settings."""

import sys

import pytest
from processes import run

from trainer.process import settings

# Tells its settings and its number, starts again, and tells them once more.
PROGRAM = """
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], sys.prefix, flush=True)
from trainer.process import settings
settings.restart_with_settings()
"""


def start(monkeypatch, value):
    """What the program prints where the variable has a value."""
    if value is None:
        monkeypatch.delenv(settings.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(settings.VARIABLE, value)
    done = run([sys.executable, "-c", PROGRAM, "two words"])
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=2) for line in done.stdout.splitlines()]


@pytest.mark.skipif(settings.has_gpu(), reason="tensors live on the GPU")
def test_it_starts_once_more_as_the_same_process_with_the_same_arguments(monkeypatch):
    (before, number, rest), (after, same_number, same_rest) = start(monkeypatch, None)
    assert before == "None"
    assert "glibc.malloc.hugetlb=1" in after
    assert (same_number, same_rest) == (number, rest)


def test_the_users_own_setting_stays(monkeypatch):
    ((value, *_),) = start(monkeypatch, "glibc.malloc.check=0")
    assert value == "glibc.malloc.check=0"
