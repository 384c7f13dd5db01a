"""The memory that a process has, needs and may have."""

import json
import mmap
import resource
import sys

import psutil
import pytest
from processes import run

from trainer.machine import free_memory, memory


def test_an_allocation_that_memory_has_no_room_for_fails():
    size = 2 * free_memory.available_bytes()
    without_reserve = 0x4000  # Else the kernel by itself may refuse so much.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve
    mmap.mmap(-1, size, flags).close()
    with memory.limited_to_available(), pytest.raises(OSError, match="Cannot allocate memory"):
        mmap.mmap(-1, size, flags)


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
    # memory back at any time. A mapping of its own goes back at once, whatever malloc does.
    size = 512 * 2**20
    process = psutil.Process()
    memory.reset_peak()
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)
        with_block = process.memory_info().rss
    assert memory.peak_bytes() > with_block - 0.1 * size
    memory.reset_peak()
    assert memory.peak_bytes() < with_block - 0.5 * size


def test_what_is_started_meanwhile_has_a_share_of_every_limit():
    """And leaves no core file; the limits of this process are then as before."""
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_CORE)
    before = [resource.getrlimit(kind) for kind in kinds]
    tell = f"import resource; print([resource.getrlimit(kind)[0] for kind in {kinds}])"
    hard = before[1][1]
    resource.setrlimit(resource.RLIMIT_AS, (2**40, hard))
    try:
        with free_memory.limited_for_others():
            data, addresses, core = json.loads(run([sys.executable, "-c", tell]).stdout)
        assert resource.getrlimit(resource.RLIMIT_AS) == (2**40, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before[1])
    assert data == pytest.approx(0.95 * free_memory.available_bytes(), rel=0.3)
    assert (addresses, core) == (int(0.95 * 2**40), 0)
    assert [resource.getrlimit(kind) for kind in kinds] == before


def write_group(folder, names, *values):
    """A memory group's files: its limit, what is used, and cached files."""
    folder.mkdir(parents=True, exist_ok=True)
    limit, used, cached = names
    for name, value in ((limit, values[0]), (used, values[1])):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"cache 7\n{cached} {values[2]}\n")


VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def test_the_limit_of_any_group_that_a_process_is_in_counts(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "groups"
    monkeypatch.setattr(free_memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(free_memory, "_CGROUP", root)
    unlimited = free_memory.available_bytes()
    own.write_text("1:cpu:/a\n0::/unit.slice/run.scope\n")
    write_group(root / "unit.slice", VERSION_2, 5000, 3000, 100)
    write_group(root / "unit.slice" / "run.scope", VERSION_2, "max", 3000, 100)
    assert free_memory.available_bytes() == 2100
    write_group(root / "unit.slice" / "run.scope", VERSION_2, 3500, 3000, 0)
    assert free_memory.available_bytes() == 500
    own.write_text("0::/not/seen/in/a/container\n")
    write_group(root, VERSION_2, 4000, 3000, 10)
    assert free_memory.available_bytes() == 1010
    own.write_text("3:hugetlb,memory:/box\n")
    assert free_memory.available_bytes() == pytest.approx(unlimited, rel=0.5)
    write_group(root / "memory" / "box", VERSION_1, 5000, 6000, 0)
    assert free_memory.available_bytes() == 0


@pytest.mark.processes
def test_a_batch_that_does_not_fit_in_memory_is_one_line():
    """Under a limit, as a GPU has one: without it the kernel would grant whatever is asked for."""
    flags = ["--dataset=synthetic", "--model=tiny:network", "--steps=1"]
    flags += ["--batch_size=10000000", "--image_size=512"]  # 7.8 TB
    done = run(["prlimit", "--data=8000000000", sys.executable, "-m", "trainer", *flags])
    assert done.returncode == 81, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "slim-horovod: --batch_size: 10000000 images of 512 px do not fit in memory. Try a smaller "
        "--batch_size and --recompute=blocks and --accumulate_steps to have as many images per "
        "update and --precision=bfloat16"
    )
    assert "Traceback" not in done.stderr
