"""Applies patches to Horovod's released source, all or those that are named: exactly or not at all.

Every patch is made against the release itself and fits at the lines that it names, nowhere else.
`git apply` and `patch` take a hunk that fits some lines further on, and not every machine has them.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HOROVOD_VERSION = "0.28.1"

_HERE = Path(__file__).resolve().parent
_REPOSITORY = _HERE.parents[1]
FOLDERS = ("build", "correctness", "speed", "launcher")
HEADER = _HERE / "shared_memory_allreduce.h"
HEADER_IN_SOURCE = "horovod/common/ops/shared_memory_allreduce.h"
_HUNK = re.compile(r"@@ -([1-9]\d*)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


class PatchError(Exception):
    """A patch that cannot be read, or a source that it is not for: where, and why, in one line."""


class Hunk(NamedTuple):
    """One change at one place.

    Attributes:
      patch: the patch's path in the repository.
      file: the path of what is changed, in Horovod's source.
      line: the number of the first of the `old` lines, counted from 1.
      old: lines that must be there, without their ends.
      new: the lines that replace them.
    """

    patch: str
    file: str
    line: int
    old: Sequence[str]
    new: Sequence[str]


def read_patches() -> dict[str, str]:
    """Returns the patches' texts by their paths in the repository, in order of application."""
    files = [
        file
        for folder in FOLDERS
        for file in sorted(_HERE.joinpath("patches", folder).glob("*.patch"))
    ]
    return {file.relative_to(_REPOSITORY).as_posix(): file.read_text("utf-8") for file in files}


def parse_patch(patch: str, text: str) -> list[Hunk]:
    """Returns the hunks of a patch in the form of `git diff`, below any text that explains it.

    Raises:
      PatchError: it is damaged, or does what is not supported: adds, removes or renames files, or
        changes lines without any line of context.
    """
    numbered = enumerate(text.removesuffix("\n").split("\n"), start=1)
    hunks = []
    file = ""
    for number, line in numbered:
        match = _HUNK.match(line)
        if line.startswith("--- a/"):
            file = line.removeprefix("--- a/")
            if next(numbered, None) != (number + 1, f"+++ b/{file}"):
                raise PatchError(f"{patch}, line {number + 1}: must be '+++ b/{file}'")
        elif match and file:
            sizes = int(match[2] or 1), int(match[3] or 1)
            old, new = _read_hunk(f"{patch}, line {number}", numbered, sizes)
            hunks.append(Hunk(patch, file, int(match[1]), old, new))
        elif match or (file and not line.startswith(("diff --git ", "index "))):
            raise PatchError(f"{patch}, line {number}: neither the name of a file nor its hunk")
    if not hunks:
        raise PatchError(f"{patch}: has no hunk")
    return hunks


def _read_hunk(
    place: str, numbered: Iterator[tuple[int, str]], sizes: tuple[int, int]
) -> tuple[list[str], list[str]]:
    old: list[str] = []
    new: list[str] = []
    while (len(old), len(new)) != sizes:
        _, line = next(numbered, (0, ""))
        kind, content = line[:1], line[1:]
        if kind not in {" ", "-", "+"}:
            raise PatchError(f"{place}: the hunk must have {sizes[0]} old and {sizes[1]} new lines")
        if kind != "+":
            old.append(content)
        if kind != "-":
            new.append(content)
    if not old:
        raise PatchError(f"{place}: the hunk has no line by which its place could be known")
    return old, new


def apply_patches(source: Path, patches: Mapping[str, str]) -> None:
    """Applies patches to a source tree, and adds the header that they include.

    Nothing is written before everything has been checked.

    Args:
      source: the folder of the release, unpacked; in it lies setup.py.
      patches: the patches' texts by their names.

    Raises:
      PatchError: a patch is damaged, the source is not the release, or two patches touch the
        same lines.
    """
    changes: dict[str, list[Hunk]] = {}
    for name, text in patches.items():
        for hunk in parse_patch(name, text):
            changes.setdefault(hunk.file, []).append(hunk)
    patched = {source / file: _patch_file(source / file, hunks) for file, hunks in changes.items()}
    header = source / HEADER_IN_SOURCE
    if header.exists():
        raise PatchError(f"{header} is there already: unpack Horovod's release afresh")
    for path, text in patched.items():
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_bytes(HEADER.read_bytes())


def _patch_file(path: Path, hunks: Sequence[Hunk]) -> str:
    if not path.is_file():
        raise _wrong_source(hunks[0], hunks[0].file, "no such file")
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    for hunk in hunks:
        for number, expected in enumerate(hunk.old, start=hunk.line):
            found = lines[number - 1] if number <= len(lines) else None
            if found != expected:
                shown = "the end of the file" if found is None else repr(found)
                place = f"{hunk.file}, line {number}"
                raise _wrong_source(hunk, place, f"expected {expected!r}, found {shown}")
    ordered = sorted(hunks, key=lambda hunk: hunk.line)
    for hunk, following in itertools.pairwise(ordered):
        if hunk.line + len(hunk.old) > following.line:
            raise PatchError(
                f"{following.patch}: {hunk.file}, line {following.line}: "
                f"{hunk.patch} is for the same line; make the two one patch"
            )
    for hunk in reversed(ordered):
        lines[hunk.line - 1 : hunk.line - 1 + len(hunk.old)] = hunk.new
    return "\n".join(lines)


def _wrong_source(hunk: Hunk, place: str, difference: str) -> PatchError:
    return PatchError(
        f"{hunk.patch}: {place}: not the source that this patch is for "
        f"(Horovod {HOROVOD_VERSION}): {difference}; "
        "scripts/horovod/README.md tells how to refresh a patch"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="the folder of the unpacked release")
    parser.add_argument("names", nargs="*", help="speed/01-urgent-tensors for instance")
    args = parser.parse_args(argv)
    patches = read_patches()
    if args.names:
        chosen = {f"scripts/horovod/patches/{name}.patch" for name in args.names}
        if unknown := chosen - set(patches):
            print(f"apply: no such patch: {', '.join(sorted(unknown))}", file=sys.stderr)
            return 1
        patches = {name: text for name, text in patches.items() if name in chosen}
    try:
        apply_patches(args.source, patches)
    except PatchError as error:
        print(f"apply: {error}", file=sys.stderr)
        return 1
    print(f"applied: {len(patches)} patches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
