"""Turns a folder of images into TFRecord shards with a manifest: what scripts/make_tfrecords.py does.

Which image goes where is decided before the first is read, from names and a seed. A shard is
written aside and renamed, with a receipt beside it; a run that was stopped goes on with the
shards that have none, and what comes out is the same to the bit.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence

import google_crc32c
import tqdm
from PIL import Image, UnidentifiedImageError

from trainer.config import UserError
from trainer.inputs import encoded, example_proto, folder, manifest, storage, tfrecord

REPORT_NAME = "unreadable.txt"

# Our own limit, `encoded.MAX_PIXELS`, takes the place of Pillow's, which only warns up to twice its.
Image.MAX_IMAGE_PIXELS = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write: its path, and the path, name, label and class of each image."""

    path: str
    plan: str
    images: tuple[tuple[str, str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What became of a task. `unreadable` has one line per image that was left out."""

    plan: str
    examples: int
    bytes: int
    crc32c: int
    unreadable: tuple[str, ...]
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]


def _trainable(data: bytes) -> tuple[bytes, encoded.ImageHeader]:
    """The image in a form that training reads, which it is left in where it has it.

    Raises:
      BadImageError: it cannot be decoded.
    """
    if encoded.is_readable(data):
        encoded.read_header(data)  # Refuses what is too large, before it is decoded.
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > encoded.MAX_PIXELS:
                raise encoded.BadImageError(f"{image.width} x {image.height} pixels")
            image.load()  # To the last byte: a truncated image is found here.
            if not encoded.is_readable(data):
                out = io.BytesIO()
                image.convert("RGB").save(out, "PNG")  # Changes no pixel of the first frame.
                data = out.getvalue()
    except UnidentifiedImageError as error:
        raise encoded.BadImageError("not an image") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise encoded.BadImageError(str(error)) from error
    return data, encoded.read_header(data)


def _record(image: tuple[str, str, int, str]) -> tuple[bytes, encoded.ImageHeader]:
    """The framed example of one image, in ImageNet's feature names."""
    path, name, label, class_name = image
    try:
        data, header = _trainable(storage.read_file(path))
    except OSError as error:
        raise encoded.BadImageError(f"cannot be read ({error.strerror})") from error
    features: dict[str, bytes | int] = {
        "image/class/label": label,
        "image/class/text": class_name.encode(errors="surrogateescape"),
        "image/filename": name.encode(errors="surrogateescape"),
        "image/format": b"JPEG" if header.decoder == encoded.JPEG else b"PNG",
        "image/height": header.height,
        "image/width": header.width,
        "image/encoded": data,
    }
    return tfrecord.frame(example_proto.serialize(features)), header


def _receipt_path(shard: str) -> str:
    return os.path.join(os.path.dirname(shard), f".{os.path.basename(shard)}.receipt")


def convert_shard(task: Task) -> Receipt:
    """Writes one shard and its receipt. Runs in a process of its own."""
    crc, size, heights, widths, unreadable = 0, 0, [], [], []
    with storage.atomic_path(task.path) as temporary, open(temporary, "wb") as file:
        for image in task.images:
            try:
                record, header = _record(image)
            except encoded.BadImageError as error:
                unreadable.append(f"{image[0]!r}: {error}")
                continue
            file.write(record)
            crc = google_crc32c.extend(crc, record)
            size += len(record)
            heights.append(header.height)
            widths.append(header.width)
    receipt = Receipt(
        plan=task.plan,
        examples=len(heights),
        bytes=size,
        crc32c=crc,
        unreadable=tuple(unreadable),
        smallest_image=(min(heights, default=0), min(widths, default=0)),
        largest_image=(max(heights, default=0), max(widths, default=0)),
    )
    storage.write_file(_receipt_path(task.path), json.dumps(dataclasses.asdict(receipt)).encode())
    return receipt


def _finished(task: Task) -> Receipt | None:
    """The receipt of a shard that an earlier run completed for the same plan."""
    try:
        receipt = Receipt(**json.loads(storage.read_file(_receipt_path(task.path))))
        is_whole = os.path.getsize(task.path) == receipt.bytes
    except (OSError, ValueError, TypeError):
        return None
    return receipt if is_whole and receipt.plan == task.plan else None


def _split_tasks(
    files: Mapping[str, Sequence[str]], split: str, source: str, out: str, shard_bytes: int, seed: int
) -> list[Task]:
    """Shuffles the files of a split and cuts them into shards of about the same number."""
    images = [
        (path, path[len(source) :].lstrip("/"), label, name)
        for label, (name, paths) in enumerate(files.items())
        for path in paths
    ]
    images.sort(key=lambda image: folder.name_digest(image[0], source, seed))
    total_bytes = sum(storage.file_state(image[0])[0] for image in images)
    count = min(len(images), max(1, round(total_bytes / shard_bytes)))
    ends = [len(images) * (number + 1) // count for number in range(count)]
    return [
        Task(
            path=os.path.join(out, f"{split}-{number:05}-of-{count:05}"),
            plan="",
            images=tuple(images[start:end]),
        )
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _plan(splits: Mapping[str, Sequence[Task]]) -> str:
    """Changes with every image, name and option that the shards depend on."""
    digest = hashlib.sha256(manifest.FORMAT.encode())
    for tasks in splits.values():
        for task in tasks:
            digest.update(os.path.basename(task.path).encode())
            for image in task.images:
                digest.update(repr((image[1:], storage.file_state(image[0]))).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone_in(out: str) -> Iterator[None]:
    """Keeps a second converter out of the folder, and removes what a killed one left."""
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--out: another converter is writing to {out}") from error
        for leftover in glob.glob(os.path.join(glob.escape(out), ".*.writing")):
            os.unlink(leftover)
        yield


def _convert_all(tasks: Sequence[Task], processes: int) -> dict[str, Receipt]:
    """The receipt of every task, by path, after the missing shards were written."""
    receipts = {task.path: receipt for task in tasks if (receipt := _finished(task))}
    missing = [task for task in tasks if task.path not in receipts]
    total = sum(len(task.images) for task in tasks)
    done = total - sum(len(task.images) for task in missing)
    context = multiprocessing.get_context("spawn")
    with (
        tqdm.tqdm(total=total, initial=done, unit="image", disable=None) as progress,
        concurrent.futures.ProcessPoolExecutor(processes, context) as pool,
    ):
        results = pool.map(convert_shard, missing) if processes > 1 else map(convert_shard, missing)
        for task, receipt in zip(missing, results, strict=True):
            receipts[task.path] = receipt
            progress.update(len(task.images))
    return receipts


def _report(out: str, receipts: Mapping[str, Receipt], max_bad: int) -> None:
    """Lists the files that were left out; raises UserError where they are too many."""
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
) -> manifest.Manifest:
    """Makes the shards that are not there yet, and then the manifest.

    Args:
      source: folder of images, as `folder.list_images` reads it.
      out: folder of the shards.
      validation_fraction: of every class to hold out, where source has no train and validation.
      shard_bytes: about how large a shard is to be.
      seed: of the order of the images.
      max_bad: unreadable files to put up with.
      processes: how many work at the same time.

    Raises:
      UserError: the source or the output folder is not fit, or too many files are unreadable.
    """
    source, out = os.path.abspath(source), os.path.abspath(out)
    splits = folder.list_images(source, validation_fraction)
    tasks = {
        split: _split_tasks(files, split, source, out, shard_bytes, seed)
        for split, files in splits.items()
    }
    plan = _plan(tasks)
    with _alone_in(out):
        described = manifest.read_manifest(out)
        if described is not None and described.source == plan:
            return described
        everything = [
            dataclasses.replace(task, plan=plan) for parts in tasks.values() for task in parts
        ]
        receipts = _convert_all(everything, processes)
        _report(out, receipts, max_bad)
        described = _describe(plan, tuple(splits["train"]), tasks, receipts)
        manifest.write_manifest(out, described)
        for task in everything:
            os.unlink(_receipt_path(task.path))
    return described


def _describe(
    plan: str,
    classes: tuple[str, ...],
    tasks: Mapping[str, Sequence[Task]],
    receipts: Mapping[str, Receipt],
) -> manifest.Manifest:
    smallest = [receipt.smallest_image for receipt in receipts.values()]
    largest = [receipt.largest_image for receipt in receipts.values()]
    return manifest.Manifest(
        source=plan,
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
