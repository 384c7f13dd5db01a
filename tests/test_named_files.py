"""The files that a command line of --mode=predict names."""

import io
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.inputs.sources.named_files import find_files


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with images, a list, and files that are no images by name."""
    for name in ("b/2.JPG", "b/10.png", "b/c/1.webp", "b/.hidden/0.jpg", "b/notes.txt", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("a.jpg\r\n\nno such.jpg\nb\n")
    (tmp_path / "zero.txt").write_bytes(b"a.jpg\0b\0")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nx.png\r\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)


IN_B = ["b/10.png", "b/2.JPG", "b/c/1.webp"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a.jpg", "b", "x.png"], ["a.jpg", *IN_B, "x.png"]),
        (["@list.txt"], ["a.jpg", "no such.jpg", *IN_B]),
        (["@windows.txt"], ["a.jpg", "x.png"]),
        (["-", "a.jpg"], ["from input.jpg", *IN_B, "a.jpg"]),
        (["./-", "./@x"], ["./-", "./@x"]),
        (["b/notes.txt"], ["b/notes.txt"]),
    ],
)
def test_files_come_in_the_order_in_which_they_are_named(place, given, expected):
    found, _ = find_files(given, io.StringIO("from input.jpg\nb\n"))
    assert found == expected


class Unreadable(io.StringIO):
    """A standard input that leads to a folder."""

    def __iter__(self):
        raise IsADirectoryError(21, "Is a directory")


@pytest.mark.parametrize(
    ("standard_input", "line"),
    [
        (None, "-: the standard input is closed"),
        (Unreadable(), "-: the list cannot be read .Is a directory."),
    ],
)
def test_a_standard_input_that_cannot_be_read_is_a_line(standard_input, line):
    with pytest.raises(UserError, match=line):
        find_files(["-"], standard_input)


def test_names_that_are_no_utf8_are_read_as_they_are():
    listed = io.TextIOWrapper(io.BytesIO(b"caf\xe9.jpg\n"), encoding="utf-8")
    assert find_files(["-"], listed)[0] == ["caf\udce9.jpg"]


@pytest.mark.usefixtures("place")
def test_a_folder_of_pictures_that_are_not_read_is_told_their_format():
    Path("empty/IMG_1.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(UserError, match=r"has no images .*\. IMG_1\.heic is a HEIC, which is not"):
        find_files(["empty"], io.StringIO())


def test_what_of_a_folder_is_left_out_is_told(place, tmp_path):
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "empty")
    found, (line,) = find_files(["b"], io.StringIO())
    assert found == IN_B
    assert line.startswith("3 files are left out: ")
    for part in (
        "1 named *.txt (b/notes.txt)",
        "1 in folders that are links (b/linked)",
        "1 in hidden folders and those of systems (b/.hidden/0.jpg)",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("empty", "empty: has no images .names end in .jpg"),
        ("@gone.txt", "@gone.txt: the list cannot be read .No such file"),
        ("-", "-: names no file"),
        ("@zero.txt", "the list of files has NUL bytes; it must have a name in each line"),
    ],
)
def test_nothing_to_classify_is_a_line(place, given, line):
    with pytest.raises(UserError, match=line):
        find_files([given], io.StringIO())
