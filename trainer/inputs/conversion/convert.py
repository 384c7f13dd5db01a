"""Turns a folder of images into TFRecord shards and a manifest, for scripts/make_tfrecords.py.

Which image goes where is decided before the first is read, from names and a seed. A shard is
written to a temporary file and renamed, with a receipt beside it. A run that was stopped goes on
with the shards that have no receipt, and the result is the same to the bit.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tqdm

from trainer.errors import UserError
from trainer.inputs.conversion.rewrite import KEEP_SIZES, Rewriting
from trainer.inputs.conversion.shard_writer import (
    Receipt,
    Task,
    convert_shard,
    find_receipt,
    receipt_path,
    write_receipt,
)
from trainer.inputs.sources import listing, manifest, storage
from trainer.process import files, identity

# Raised with each change of what becomes of images, all or smaller ones: shards are written anew.
_RULES, _RULES_OF_SMALLER = 4, " 5"
# Where each image is much work, there are as many shards at least as keep several processes busy to
# the end, unless there are few images.
_SHARDS_FOR_PROCESSES = 32
_IMAGES_FOR_A_SHARD = 8
# Names of shards have five digits.
_MOST_SHARDS = 99_999
REPORT_NAME = "unreadable.txt"
# The temporary files of killed converters of earlier versions.
_OF_EARLIER_VERSIONS = re.compile(r"\..*\.writing")


def _state(path: str) -> tuple[int, int]:
    """Returns a file's state, or zeros for one that cannot be read, which is reported later."""
    try:
        return storage.file_state(path)
    except OSError:
        return 0, 0


def _split_tasks(
    files: Mapping[str, Sequence[str]],
    split: str,
    source: str,
    out: str,
    shard_bytes: int,
    seed: int,
    rewriting: Rewriting,
) -> list[Task]:
    """Shuffles the files of a split and cuts them into shards of about the same number."""
    images = [
        (path, path[len(source) :].lstrip("/"), label, name)
        for label, (name, paths) in enumerate(files.items())
        for path in paths
    ]
    images.sort(key=lambda image: listing.name_digest(image[0], source, seed))
    total_bytes = sum(_state(image[0])[0] for image in images)
    count = min(len(images), _MOST_SHARDS, max(1, round(total_bytes / shard_bytes)))
    if rewriting.shorter_side is not None:
        # Not by the number of processes, on which the shards must not depend.
        count = max(count, min(_SHARDS_FOR_PROCESSES, len(images) // _IMAGES_FOR_A_SHARD))
    ends = [len(images) * (number + 1) // count for number in range(count)]
    return [
        Task(
            path=os.path.join(out, f"{split}-{number:05}-of-{count:05}"),
            digest="",
            rewriting=rewriting,
            images=tuple(images[start:end]),
        )
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _digest(splits: Mapping[str, Sequence[Task]]) -> str:
    """Returns a digest of every image, name, option and rule that the shards depend on."""
    digest = hashlib.sha256(f"{manifest.FORMAT} {_RULES}".encode())
    for tasks in splits.values():
        for task in tasks:
            rules = "" if task.rewriting.shorter_side is None else _RULES_OF_SMALLER
            digest.update(f"{os.path.basename(task.path)} {task.rewriting}{rules}".encode())
            for image in task.images:
                digest.update(repr((image[1:], _state(image[0]))).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone_in(out: str) -> Iterator[None]:
    """Locks the folder against other converters, and removes what a killed one has left."""
    files.check_writable(out, "out", is_folder=True)
    with open(os.path.join(out, ".lock"), "w") as lock:
        try:
            files.lock(lock, lock.name, wait=False)
        except BlockingIOError as error:
            raise UserError(f"--out: another converter is writing to {out}") from error
        files.sweep(Path(out), earlier=_OF_EARLIER_VERSIONS)
        yield


def _check_replaces(
    out: str, described: manifest.Manifest, classes: Sequence[str], say: Callable[[str], object]
) -> None:
    """Says that a finished data set will be replaced.

    Raises:
      UserError: it has none of the classes, and must be another one.
    """
    if not set(described.classes) & set(classes):
        raise UserError(
            f"--out: {out} holds another data set, of which {described.classes[0]} is a class: "
            "give another folder, or remove it"
        )
    say(f"{out}: its shards are of other files, options or another version: they are replaced")


def _remove_others(out: str, described: manifest.Manifest | None, tasks: Sequence[Task]) -> None:
    """Removes the shards of earlier runs with other images or options; first their manifest."""
    receipts = glob.glob(".*.receipt", root_dir=out)
    earlier = {os.path.join(out, name[1:].removesuffix(".receipt")) for name in receipts}
    if described is not None:
        os.unlink(os.path.join(out, manifest.FILE_NAME))
        for named in described.splits.values():
            earlier |= {os.path.join(out, shard.file) for shard in named}
    for path in earlier - {task.path for task in tasks}:
        for name in (path, receipt_path(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _keep_whole_shards(out: str, described: manifest.Manifest, tasks: Sequence[Task]) -> list[str]:
    """Returns the names of a manifest's shards that are lost; then writes receipts of the others.

    Shards that lack images which could not be read get none: the list of these is to be whole.
    """
    named = {
        os.path.join(out, shard.file): shard
        for shards in described.splits.values()
        for shard in shards
    }
    lost = [path for path, shard in named.items() if not _has_size(path, shard.bytes)]
    for task in tasks if lost else ():
        shard = named[task.path]
        if task.path not in lost and shard.examples == len(task.images):
            receipt = Receipt(
                plan=task.digest,
                examples=shard.examples,
                bytes=shard.bytes,
                crc32c=shard.crc32c,
                unreadable=(),
                changes={},
                smallest_image=described.smallest_image,
                largest_image=described.largest_image,
            )
            write_receipt(task.path, receipt)
    return [os.path.basename(path) for path in lost]


def _has_size(path: str, size: int) -> bool:
    try:
        return os.path.getsize(path) == size
    except OSError:
        return False


def _end_with(parent: int) -> None:
    """Ends this process with the one that has started it, which may have ended already."""
    identity.end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Lets Ctrl-C wait. What is started meanwhile never gets it, not while it begins either.

    So this process alone handles it: the others end after the shards that they are writing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _convert_all(tasks: Sequence[Task], processes: int) -> dict[str, Receipt]:
    """Writes the shards that are missing, and returns the receipt of every task, by path."""
    receipts = {task.path: receipt for task in tasks if (receipt := find_receipt(task))}
    missing = [task for task in tasks if task.path not in receipts]
    total = sum(len(task.images) for task in tasks)
    done = total - sum(len(task.images) for task in missing)
    context = multiprocessing.get_context("spawn")
    with (
        tqdm.tqdm(total=total, initial=done, unit="image", disable=None) as progress,
        concurrent.futures.ProcessPoolExecutor(
            processes, context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool,
    ):
        try:
            results: Iterator[Receipt] = map(convert_shard, missing)
            if processes > 1:
                with _ctrl_c_blocked():
                    results = pool.map(convert_shard, missing)
            for task, receipt in zip(missing, results, strict=True):
                receipts[task.path] = receipt
                progress.update(len(task.images))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                f"--processes: one of {processes} was killed, perhaps for want of memory. Started "
                "again, with fewer, it goes on where it was"
            ) from error
    return receipts


def _report(out: str, receipts: Mapping[str, Receipt], max_bad: int) -> None:
    """Writes the list of files that were left out; raises UserError where they are too many."""
    lines = [line for receipt in receipts.values() for line in receipt.unreadable]
    path = os.path.join(out, REPORT_NAME)
    storage.write_file(path, "".join(f"{line}\n" for line in lines).encode())
    if len(lines) > max_bad:
        raise UserError(
            f"--max_bad: {len(lines)} files cannot be read, where {max_bad} are allowed; the first "
            f"is {lines[0]}. {path} lists them"
        )
    empty = [shard for shard, receipt in receipts.items() if not receipt.examples]
    if empty:
        raise UserError(f"{empty[0]}: no image of this shard can be read. {path} lists them")


def convert(
    source: str,
    out: str,
    *,
    validation_fraction: float = 0.0,
    shard_bytes: int = 128 << 20,
    seed: int = 0,
    max_bad: int = 0,
    processes: int = 1,
    follow_links: bool = False,
    rewriting: Rewriting = KEEP_SIZES,
    say: Callable[[str], object] = print,
) -> manifest.Manifest:
    """Writes the shards that are missing, and then the manifest.

    Args:
      source: the folder of images, as `listing.list_images` reads it.
      out: the folder of the shards.
      validation_fraction: the share of every class to hold out, where the source has no folders
        train and validation.
      shard_bytes: the approximate size of a shard, bytes.
      seed: the seed of the order of the images.
      max_bad: the number of unreadable files that are left out without failing.
      processes: the number of processes that work at the same time.
      follow_links: whether links may lead out of the source.
      rewriting: what becomes of images that are large.
      say: the function that gets lines about what is left out or changed.

    Raises:
      UserError: the source or the output folder is not fit, or too many files are unreadable.
    """
    source, out = os.path.abspath(source), os.path.abspath(out)
    images = listing.list_images(source, validation_fraction, follow_links=follow_links)
    for remark in images.remarks:
        say(remark)
    splits = images.splits
    tasks = {
        split: _split_tasks(files, split, source, out, shard_bytes, seed, rewriting)
        for split, files in splits.items()
    }
    digest = _digest(tasks)
    with _alone_in(out):
        described = manifest.read_manifest(out)
        everything = [
            dataclasses.replace(task, digest=digest) for parts in tasks.values() for task in parts
        ]
        if described is not None and described.source == digest:
            lost = _keep_whole_shards(out, described, everything)
            if not lost:
                return described
            say(f"{out}: {lost[0]} is missing or cut off ({len(lost)} such shards): written again")
        if described is not None and described.source != digest:
            _check_replaces(out, described, tuple(next(iter(splits.values()))), say)
        _remove_others(out, described, everything)
        receipts = _convert_all(everything, processes)
        _report(out, receipts, max_bad)
        for line in _describe_changes(receipts.values()):
            say(line)
        described = _describe(digest, tuple(next(iter(splits.values()))), tasks, receipts)
        manifest.write_manifest(out, described)
        for task in everything:
            os.unlink(receipt_path(task.path))
    return described


def _describe_changes(receipts: Iterable[Receipt]) -> list[str]:
    """Returns a line for each kind of change, with the number of images that it was made in."""
    counts: collections.Counter[str] = collections.Counter()
    for receipt in receipts:
        counts.update(receipt.changes)
    return [
        f"{count} image{'s' if count > 1 else ''} {change}"
        for change, count in sorted(counts.items())
    ]


def _describe(
    digest: str,
    classes: tuple[str, ...],
    tasks: Mapping[str, Sequence[Task]],
    receipts: Mapping[str, Receipt],
) -> manifest.Manifest:
    """Returns the manifest of the shards that were written."""
    smallest = [receipt.smallest_image for receipt in receipts.values()]
    largest = [receipt.largest_image for receipt in receipts.values()]
    return manifest.Manifest(
        source=digest,
        classes=classes,
        label_offset=0,
        splits={
            split: tuple(
                manifest.Shard(
                    file=os.path.basename(task.path),
                    examples=receipts[task.path].examples,
                    bytes=receipts[task.path].bytes,
                    crc32c=receipts[task.path].crc32c,
                )
                for task in parts
            )
            for split, parts in tasks.items()
        },
        smallest_image=(min(size[0] for size in smallest), min(size[1] for size in smallest)),
        largest_image=(max(size[0] for size in largest), max(size[1] for size in largest)),
    )
