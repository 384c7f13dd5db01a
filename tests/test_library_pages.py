"""Tests that libraries' pages are given back, and that what was changed in memory stays."""

import ctypes
import hashlib
import mmap
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.machine import library_pages, session

_PROT_READ = 1


def _read_code_of_tensorflow() -> tuple[int, str]:
    """Reads a library's instructions, page by page: their size in bytes, and a digest."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    (line,) = [line for line in lines if re.search(r" r-xp .*libtensorflow_framework\.so", line)]
    begin, end = (int(address, 16) for address in line.split()[0].split("-"))
    return end - begin, hashlib.sha256(ctypes.string_at(begin, end - begin)).hexdigest()


def _resident_bytes_of_files() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^RssFile:\s*(\d+) kB$", status, re.MULTILINE)[0])


def test_a_session_begins_without_the_pages_that_loading_needed() -> None:
    size, digest = _read_code_of_tensorflow()
    before = _resident_bytes_of_files()
    with tf.Graph().as_default():
        left, right = (tf.random.stateless_normal([64, 64], [0, seed]) for seed in (1, 2))
        product = left @ right
        with session.open_session() as opened:
            # Most of its code, and nearly all of a larger library's, is not used to get here.
            assert before - _resident_bytes_of_files() > size / 2
            found, one, other = opened.run((product, left, right))
    np.testing.assert_allclose(found, one.astype(float) @ other.astype(float), atol=1e-4)
    assert _read_code_of_tensorflow() == (size, digest)


def test_pages_that_this_process_has_changed_stay(tmp_path: Path) -> None:
    """As those of a library are that its linker has filled in, and made read-only then."""
    size = 4 * mmap.PAGESIZE
    file = tmp_path / "libchanged.so.2"
    file.write_bytes(b"a" * size)
    with file.open("r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE)
    mapped[mmap.PAGESIZE] = ord("b")
    view = ctypes.c_char.from_buffer(mapped)
    address = ctypes.addressof(view)
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(address), ctypes.c_size_t(size), _PROT_READ) == 0
    entry = next(
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(file.name)
    )
    assert " r--p " in entry
    library_pages.give_back()
    assert ctypes.string_at(address, size) == mapped[:]
    assert mapped[:] == b"a" * mmap.PAGESIZE + b"b" + b"a" * (3 * mmap.PAGESIZE - 1)
    del view
    mapped.close()


def test_nothing_is_given_back_where_the_kernel_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, _ = _read_code_of_tensorflow()
    before = _resident_bytes_of_files()
    absent = tmp_path / "smaps"
    monkeypatch.setattr(library_pages, "_MAPPINGS", absent)
    library_pages.give_back()
    text = Path("/proc/self/smaps").read_text()
    absent.write_text(re.sub(r"^(Anonymous|Locked):.*\n", "", text, flags=re.MULTILINE))
    library_pages.give_back()
    assert before - _resident_bytes_of_files() < size / 2


@pytest.mark.parametrize(
    ("fields", "is_unchanged"),
    [
        ({}, True),
        ({"Anonymous": 4}, False),
        ({"Swap": 8}, False),  # Changed pages that are out.
        ({"Locked": 4}, False),
        ({"Anonymous": None}, False),
        ({"Swap": None}, False),
        ({"Locked": None}, False),
    ],
)
def test_only_parts_without_changed_pages_are_taken(tmp_path, monkeypatch, fields, is_unchanged):
    values = {"Rss": 64, "Anonymous": 0, "Swap": 0, "Locked": 0} | fields
    lines = [f"{name}: {kib:>8} kB" for name, kib in values.items() if kib is not None]
    others = "7f0000300000-7f0000400000 rw-p 0 fe:00 3  /lib/libwritten.so.1\nAnonymous: 0 kB\n"
    text = "\n".join(["7f0000100000-7f0000200000 r--p 0 fe:00 3  /lib/lib with.so.1.2", *lines])
    (tmp_path / "smaps").write_text(f"{text}\n{others}")
    monkeypatch.setattr(library_pages, "_MAPPINGS", tmp_path / "smaps")
    found = [(0x7F0000100000, 0x7F0000200000)] if is_unchanged else []
    assert list(library_pages._find_unchanged()) == found
