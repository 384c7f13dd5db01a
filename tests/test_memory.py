"""What memory a process has, needs and may have."""

import mmap
import resource
import sys

import psutil
import pytest
from processes import run

from trainer.machine import free_memory, memory


def test_an_allocation_that_memory_has_no_room_for_fails():
    size = 2 * free_memory.available_bytes()
    with memory.limited_to_available(), pytest.raises(OSError, match="Cannot allocate memory"):
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_one_that_fits_does_not():
    with memory.limited_to_available():
        assert len(bytearray(2**20)) == 2**20


def test_the_limit_ends_with_its_block():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.limited_to_available():
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_peak_has_what_was_freed_until_it_is_reset():
    # Compared with what was resident meanwhile, not before: other threads, and the kernel, may give
    # memory back at any time.
    size = 512 * 2**20
    process = psutil.Process()
    memory.reset_peak()
    block = bytearray(b"x") * size
    with_block = process.memory_info().rss
    del block
    assert memory.peak_bytes() > with_block - 0.1 * size
    memory.reset_peak()
    assert memory.peak_bytes() < with_block - 0.5 * size


@pytest.mark.processes
def test_a_batch_that_does_not_fit_in_memory_is_one_line():
    """Under a limit, as a GPU has one: without it the kernel would grant whatever is asked for."""
    flags = ["--dataset=synthetic", "--model=tiny:network", "--steps=1"]
    flags += ["--batch_size=10000000", "--image_size=512"]  # 7.8 TB
    done = run(["prlimit", "--data=8000000000", sys.executable, "-m", "trainer", *flags])
    assert done.returncode == 81, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "slim-horovod: --batch_size: 10000000 images of 512 px do not fit in memory. Try a smaller "
        "--batch_size and --accumulate_steps to have as many images per update and "
        "--precision=bfloat16"
    )
    assert "Traceback" not in done.stderr
