"""Patches of Horovod: whole, explained, and applied to exactly the source they were made for."""

import re
import shutil
import subprocess
from pathlib import Path

import apply
import pytest

from trainer import distributed

PATCHES = apply.read_patches()
README = (Path(apply.__file__).parent / "README.md").read_text()

SOURCE = {
    "src/a.cc": "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n",
    "src/b.cc": "begin\nreserve(size);\nend\n",
}
PATCH = """\
Why: two files serve one purpose.

diff --git a/src/a.cc b/src/a.cc
index 1234567..89abcde 100644
--- a/src/a.cc
+++ b/src/a.cc
@@ -1,3 +1,4 @@ int main() {
 one
+one and a half
 two
 three
@@ -7,3 +8,2 @@
 seven
-eight
 nine
diff --git a/src/b.cc b/src/b.cc
--- a/src/b.cc
+++ b/src/b.cc
@@ -1,3 +1,3 @@
 begin
-reserve(size);
+resize(size);
 end
"""
PATCHED = {
    "src/a.cc": "one\none and a half\ntwo\nthree\nfour\nfive\nsix\nseven\nnine\n",
    "src/b.cc": "begin\nresize(size);\nend\n",
}


def one_line(start, old, new, file="src/a.cc"):
    """A patch that replaces one line, without context."""
    return f"--- a/{file}\n+++ b/{file}\n@@ -{start} +{start} @@\n-{old}\n+{new}\n"


@pytest.fixture
def source(tmp_path):
    for name, text in SOURCE.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def contents(source):
    files = (path for path in source.rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix(): path.read_text() for path in files}


def refusal(source, patches):
    """The one line that refuses patches; the source stays as it was."""
    with pytest.raises(apply.PatchError) as raised:
        apply.apply_patches(source, patches)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_patch_changes_its_lines_and_nothing_else_and_the_header_is_added(source):
    apply.apply_patches(source, {"p": PATCH})
    expected = PATCHED | {apply.HEADER_IN_SOURCE: apply.HEADER.read_text()}
    assert contents(source) == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_applies_a_patch_alike(source):
    subprocess.run(["git", "apply"], input=PATCH, text=True, cwd=source, check=True)
    assert contents(source) == PATCHED


def test_patches_of_one_file_are_all_for_the_release_whatever_their_order(source, tmp_path):
    first = one_line(2, "two", "two\n+and a half")
    first = first.replace("@@ -2 +2 @@", "@@ -2 +2,2 @@")
    second = one_line(7, "seven", "SEVEN")
    apply.apply_patches(source, {"second": second, "first": first})
    expected = SOURCE["src/a.cc"].replace("two\n", "two\nand a half\n").replace("seven", "SEVEN")
    assert (source / "src/a.cc").read_text() == expected


@pytest.mark.parametrize(
    ("file", "old", "new", "place"),
    [
        ("src/a.cc", "three", "3", "src/a.cc, line 3: .* expected 'three', found '3'"),
        ("src/a.cc", "eight", "8", "src/a.cc, line 8: .* expected 'eight', found '8'"),
        ("src/a.cc", "two", "two ", "src/a.cc, line 2: .* expected 'two', found 'two '"),
        # Text that is the same, a line further on or nearer.
        ("src/a.cc", "five", "five\nagain", "src/a.cc, line 7: .* expected 'seven', found 'six'"),
        ("src/a.cc", "five\n", "", "src/a.cc, line 7: .* expected 'seven', found 'eight'"),
        ("src/a.cc", "nine\n", "", "src/a.cc, line 9: .* expected 'nine', found ''"),
        ("src/b.cc", "reserve(size);\nend\n", "", "src/b.cc, line 2: .*, found ''"),
        ("src/b.cc", "\nreserve(size);\nend\n", "", "src/b.cc, line 2: .*, found the end of the"),
    ],
)
def test_another_source_is_refused_before_anything_is_written(source, file, old, new, place):
    (source / file).write_text(SOURCE[file].replace(old, new))
    before = contents(source)
    told = refusal(source, {"speed/01-x.patch": PATCH})
    wrong = r"not the source that this patch is for \(Horovod 0\.28\.1\)"
    place, difference = place.split(" .* ") if " .* " in place else place.split(" .*")
    assert re.match(rf"speed/01-x\.patch: {place} {wrong}: .*{re.escape(difference)}", told), told
    assert "scripts/horovod/README.md" in told
    assert contents(source) == before


def test_a_source_without_the_file_is_refused_before_anything_is_written(source):
    (source / "src/b.cc").unlink()
    told = refusal(source, {"p": PATCH})
    assert told.startswith("p: src/b.cc: not the source that this patch is for (Horovod 0.28.1)")
    assert contents(source) == {"src/a.cc": SOURCE["src/a.cc"]}


def test_no_patch_is_applied_twice(source):
    apply.apply_patches(source, {"p": PATCH})
    before = contents(source)
    assert refusal(source, {"p": PATCH}).startswith("p: src/a.cc, line 2: not the source")
    assert contents(source) == before


def test_a_source_that_has_the_header_is_refused(source):
    header = source / apply.HEADER_IN_SOURCE
    header.parent.mkdir(parents=True)
    header.touch()
    assert f"{header} is there already" in refusal(source, {"p": PATCH})
    assert (source / "src/a.cc").read_text() == SOURCE["src/a.cc"]


def test_two_patches_of_the_same_line_are_refused(source):
    patches = {"one": PATCH, "other": one_line(3, "three", "3")}
    assert refusal(source, patches).startswith("other: src/a.cc, line 3: one is for the same line")
    assert contents(source) == SOURCE


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("+++ b/src/b.cc", "+++ b/src/c.cc", r"p, line 18: must be '\+\+\+ b/src/b\.cc'"),
        ("--- a/src/b.cc", "--- /dev/null", "p, line 17: neither the name of a file nor its hunk"),
        ("--- a/src/a.cc\n+++ b/src/a.cc\n", "", "p, line 5: neither the name of a file nor its"),
        ("@@ -1,3 +1,3 @@", "@@ -1,4 +1,3 @@", "p, line 19: the hunk must have 4 old and 3 new"),
        ("@@ -7,3 +8,2 @@", "@@ -7,2 +8 @@", "p, line 15: neither the name of a file nor its hunk"),
        ("@@ -1,3 +1,3 @@", "@@ -0,3 +1,3 @@", "p, line 19: neither the name of a file nor its"),
        (" begin\n-reserve(size);\n", "", "p, line 19: the hunk must have 3 old and 3 new lines"),
        (" seven\n", "\n", "p, line 12: the hunk must have 3 old and 2 new lines"),
        (" nine\n", " nine\n\\ No newline at end of file\n", "p, line 16: neither the name"),
        (
            "1,3 @@\n begin\n-reserve(size);\n",
            "1 @@\n",
            "p, line 19: the hunk must have 3 old and 1",
        ),
        ("-1,3 +1,3 @@\n begin\n-r", "-2,0 +2 @@\n+r", "p, line 19: the hunk has no line by which"),
    ],
)
def test_a_damaged_patch_is_refused_with_its_line(source, old, new, told):
    assert PATCH.count(old) == 1
    assert re.match(told, refusal(source, {"p": PATCH.replace(old, new)}))
    assert contents(source) == SOURCE


def test_a_patch_without_a_hunk_is_refused(source):
    assert refusal(source, {"p": "Why: nothing.\n"}) == "p: has no hunk"


def test_the_program_applies_what_is_named_and_ends_with_one_line_where_it_can_not(
    source, monkeypatch, capsys
):
    names = [f"scripts/horovod/patches/speed/0{number}-x.patch" for number in (1, 2)]
    texts = [PATCH, one_line(5, "five", "5")]
    monkeypatch.setattr(apply, "read_patches", lambda: dict(zip(names, texts, strict=True)))
    assert apply.main([str(source), "speed/03-x"]) == 1
    assert capsys.readouterr().err == f"apply: no such patch: {names[0].replace('01', '03')}\n"
    assert apply.main([str(source), "speed/02-x"]) == 0
    assert contents(source)["src/b.cc"] == SOURCE["src/b.cc"]
    assert "5\n" in contents(source)["src/a.cc"]
    assert apply.main([str(source), "speed/02-x"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"apply: {names[1]}: src/a.cc, line 5: not the source")
    assert told.count("\n") == 1


def test_every_file_among_the_patches_is_one_in_a_fixed_order():
    folder = Path(apply.__file__).parent / "patches"
    root = folder.parents[2]
    found = {file.relative_to(root).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert set(PATCHES) == found
    numbers = {name: [] for name in apply.FOLDERS}
    for patch in PATCHES:
        match = re.fullmatch(r"scripts/horovod/patches/(\w+)/(\d\d)-[a-z0-9-]+\.patch", patch)
        numbers[match[1]].append(int(match[2]))
    assert list(PATCHES) == sorted(
        PATCHES, key=lambda patch: (apply.FOLDERS.index(patch.split("/")[3]), patch)
    )
    assert f" {len(PATCHES)} patches" in README
    for of_folder in numbers.values():
        assert of_folder == list(range(1, len(of_folder) + 1))


@pytest.mark.parametrize("patch", PATCHES)
def test_every_patch_is_explained(patch):
    explanation, _, _ = PATCHES[patch].partition("\ndiff --git ")
    found = dict(re.findall(r"^(Why|Measured gain|Upstream): (.+(?:\n.+)*)$", explanation, re.M))
    assert list(found) == ["Why", "Measured gain", "Upstream"]
    assert 2 <= found["Why"].count("\n") + 1 <= 5
    assert max(map(len, explanation.split("\n"))) <= 100
    assert f"| {patch.removeprefix('scripts/horovod/patches/').removesuffix('.patch')} |" in README


def test_no_two_patches_touch_the_same_lines():
    """The source as far as the patches show it is patched, so that the suite needs no network."""
    hunks = [hunk for patch, text in PATCHES.items() for hunk in apply.parse_patch(patch, text)]
    places = [(hunk.file, hunk.line, hunk.line + len(hunk.old)) for hunk in hunks]
    for (file, _, end), (next_file, start, _) in zip(
        sorted(places), sorted(places)[1:], strict=False
    ):
        assert file != next_file or end <= start, f"{file}, line {start}"


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_fits_the_lines_that_it_shows_once_and_no_other(tmp_path, patch):
    def write_source():
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        for file in {hunk.file for hunk in hunks}:
            lines = []
            for hunk in (hunk for hunk in hunks if hunk.file == file):
                lines += ["?"] * (hunk.line - 1 - len(lines))
                lines += hunk.old
            path = tmp_path / "source" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")

    hunks = apply.parse_patch(patch, PATCHES[patch])
    write_source()
    apply.apply_patches(tmp_path / "source", {patch: PATCHES[patch]})
    for hunk in hunks:
        assert "\n".join(hunk.new) in (tmp_path / "source" / hunk.file).read_text()
    refusal(tmp_path / "source", {patch: PATCHES[patch]})
    for hunk in hunks:
        write_source()
        path = tmp_path / "source" / hunk.file
        path.write_text("?\n" + path.read_text())
        assert f"{patch}: {hunk.file}, line " in refusal(
            tmp_path / "source", {patch: PATCHES[patch]}
        )


def test_the_prefix_of_urgent_tensors_is_the_trainers():
    patch = PATCHES["scripts/horovod/patches/speed/01-urgent-tensors.patch"]
    compared = re.findall(r'compare\(0, (\d+), "([^"]*)"\)', patch)
    assert compared == [(str(len(distributed.URGENT)), distributed.URGENT)]
