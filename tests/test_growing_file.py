"""Files that grow, on a disk that is full and in a folder that vanishes: real ones."""

import contextlib
import resource
import shutil

import pytest

from trainer.telemetry.writers.growing_file import GrowingFile


@contextlib.contextmanager
def largest_file(size):
    """Limits every file of this process to `size`, bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nothing_is_torn_or_lost_by_a_full_disk(tmp_path):
    path = tmp_path / "folder" / "log"
    file = GrowingFile(path, header=b"header\n")
    file.append(b"first\n")
    file.flush()
    with largest_file(path.stat().st_size + 3):
        file.append(b"second\n")
        with pytest.raises(OSError, match="File too large"):
            file.flush()
        file.append(b"third\n")
        with pytest.raises(OSError, match="File too large"):
            file.flush()
    assert path.read_bytes() == b"header\nfirst\nsec"
    file.append(b"fourth\n")
    file.close()
    assert path.read_bytes() == b"header\nfirst\nsecond\nthird\nfourth\n"


def test_a_vanished_folder_is_made_again(tmp_path):
    path = tmp_path / "folder" / "log"
    file = GrowingFile(path, header=b"header\n")
    file.append(b"first\n")
    file.flush()
    shutil.rmtree(path.parent)
    file.append(b"second\n")
    file.flush()
    assert path.read_bytes() == b"header\nsecond\n"
    file.close()


def test_a_file_that_is_there_goes_on(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    file = GrowingFile(path, header=b"header\n")
    file.append(b"new\n")
    file.close()
    assert path.read_bytes() == b"old\nnew\n"


def test_memory_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(GrowingFile, "MAX_WAITING_BYTES", 20)
    file = GrowingFile(tmp_path / "log")
    for number in range(100):
        file.append(b"record %02d\n" % number)
    file.close()
    # The first may have been begun, and stays; of the others, the newest.
    assert (tmp_path / "log").read_bytes() == b"record 00\nrecord 99\n"
