"""The index of a set of shards, with the place and the label of every record.

It is made by a scan that goes from length to length and to the label within each record, so that
the images' bytes are not read. It is cached beside the data (`.train.index.npz`) or, where that
cannot be written, in the user's cache folder, and used as long as no shard changes.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tqdm
from absl import logging

from trainer.inputs.sources import example_proto, storage, tfrecord
from trainer.process import files

# In ImageNet's form, and as TensorFlow Datasets writes them.
_LABEL_FEATURES = ("image/class/label", "label")
_IMAGE_FEATURES = ("image/encoded", "image")
_VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAMES_SHOWN = 8


class ShardIndex(NamedTuple):
    """The records of one shard.

    Attributes:
      offsets: the first byte of each record and, as the last entry, the size of the file: int64
        [records + 1].
      images: the first byte of each encoded image within its record, and its length in bytes, 0
        where there is none: int64 [records, 2].
      labels: the labels as they are stored, before --label_offset: int64 [records].
    """

    offsets: npt.NDArray[Any]
    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


def scan_shard(path: str) -> ShardIndex:
    """Finds the records of one shard.

    Raises:
      ShardError: the shard is damaged, empty, or holds something else than labelled images.
    """
    buffer = storage.map_file(path)
    offsets, images, labels = [], [], []
    for offset, data in tfrecord.scan(buffer, path):
        offsets.append(offset)
        try:
            start, length, label = find_image(data)
        except ValueError as error:
            raise tfrecord.ShardError(
                path,
                offset,
                f"not a labelled image: {error}",
                remedy="Shards must have Examples in ImageNet's form, with encoded images and "
                "integer labels; scripts/make_tfrecords.py writes such.",
            ) from error
        images.append((tfrecord.HEADER_BYTES + start, length))
        labels.append(label)
    if not offsets:
        raise tfrecord.ShardError(path, 0, "the shard is empty")
    return ShardIndex(
        np.array([*offsets, len(buffer)], np.int64),
        np.array(images, np.int64),
        np.array(labels, np.int64),
    )


def find_image(data: memoryview) -> tuple[int, int, int]:
    """Finds an example's image and label.

    Returns:
      (first byte, length, label), where the first two are those of the encoded image.

    Raises:
      ValueError: the bytes are not an Example, or one without a label.
    """
    features = example_proto.find_features(data, (*_IMAGE_FEATURES, *_LABEL_FEATURES))
    label_name = next((name for name in _LABEL_FEATURES if name in features), None)
    if label_name is None:
        there = ", ".join(sorted(example_proto.list_features(data))[:_NAMES_SHOWN]) or "none"
        raise ValueError(f"it has no feature {' or '.join(_LABEL_FEATURES)}; its features: {there}")
    try:
        label = example_proto.read_int64(data, features[label_name])
    except ValueError as error:
        raise ValueError(f"{label_name}: {error}") from error
    image_name = next((name for name in _IMAGE_FEATURES if name in features), None)
    if image_name is None:
        return 0, 0, label
    try:
        start, end = example_proto.find_bytes(data, features[image_name])
    except ValueError as error:
        raise ValueError(f"{image_name}: {error}") from error
    return start, end - start, label


def _state(paths: Sequence[str]) -> str:
    """Returns a string that changes whenever a shard does."""
    digest = hashlib.sha256(str(_VERSION).encode())
    for path in paths:
        digest.update(repr((os.path.basename(path), *storage.file_state(path))).encode())
    return digest.hexdigest()


def _cache_paths(paths: Sequence[str], split: str) -> list[str]:
    """Returns the paths where the index of these shards may be cached, best first."""
    places = []
    if not storage.is_remote(paths[0]):
        places.append(os.path.join(os.path.dirname(paths[0]), f".{split}.index.npz"))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not cache.startswith("~"):  # There is a home.
        path = os.fsencode(os.path.abspath(paths[0]))
        name = hashlib.sha256(path).hexdigest()[:16]
        places.append(os.path.join(cache, "slim-horovod", "index", f"{name}.npz"))
    return places


def _read_cached(
    path: str, state: str, num_shards: int, say: Callable[[str], object]
) -> list[ShardIndex] | None:
    """Reads a cached index; returns None where it is absent, damaged or of other shards."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    # Whatever a damaged archive says would be taken for the places and the labels of images.
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        say(f"{path}: is damaged, or of an earlier version: the shards are scanned anew")
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        if str(arrays["state"]) != state:
            say(f"{path}: is of other shards than there are now: these are scanned anew")
            return None
        sizes, offsets = arrays["sizes"], arrays["offsets"]
        images, labels = arrays["images"], arrays["labels"]
    ends = np.cumsum(sizes)
    if len(sizes) != num_shards or len(labels) != ends[-1] or len(offsets) != ends[-1] + num_shards:
        return None
    return [
        ShardIndex(offsets[start + i : end + i + 1], images[start:end], labels[start:end])
        for i, (start, end) in enumerate(zip(ends - sizes, ends, strict=True))
    ]


def _write_cached(candidates: Sequence[str], state: str, shards: Sequence[ShardIndex]) -> None:
    """Caches the index, and its digest, in the first place that can be written, if there is one."""
    archive = io.BytesIO()
    np.savez(
        archive,
        state=np.array(state),
        sizes=np.array([len(shard.labels) for shard in shards], np.int64),
        offsets=np.concatenate([shard.offsets for shard in shards]),
        images=np.concatenate([shard.images for shard in shards]),
        labels=np.concatenate([shard.labels for shard in shards]),
    )
    content = archive.getvalue()
    for path in candidates:
        with contextlib.suppress(OSError):
            files.sweep_beside(path)
            files.write_bytes(path, content + hashlib.sha256(content).digest())
            return


@contextlib.contextmanager
def _one_process_at_a_time(path: str | None) -> Iterator[None]:
    """Holds a lock, so that one of a host's workers scans while the others wait for its index."""
    if path is None:
        yield
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open(f"{path}.lock", "w")  # noqa: SIM115 - closed below, which unlocks it
    except OSError:  # There is no place for a lock: each worker scans for itself.
        yield
        return
    with file:
        files.lock(file, path, wait=True)
        yield


def load_index(paths: Sequence[str], *, split: str) -> list[ShardIndex]:
    """Returns the index of every shard, in the order of `paths`; scans where none is cached.

    Raises:
      ShardError: a shard is damaged or empty.
      OSError: a shard cannot be read.
    """
    candidates = _cache_paths(paths, split)
    state = _state(paths)

    def read_cached(say: Callable[[str], object]) -> list[ShardIndex] | None:
        cached = (_read_cached(path, state, len(paths), say) for path in candidates)
        return next((shards for shards in cached if shards is not None), None)

    faults: list[str] = []
    shards = read_cached(faults.append)
    if shards is not None:
        return shards
    for fault in faults:
        logging.warning("%s", fault)
    with _one_process_at_a_time(candidates[-1] if candidates else None):
        shards = read_cached(logging.debug)  # It has been said already.
        if shards is None:
            # A progress bar only on a terminal, and only where it takes longer than a second.
            progress = tqdm.tqdm(
                paths, f"Indexing {split} shards", unit="shard", delay=1, disable=None
            )
            shards = [scan_shard(path) for path in progress]
            _write_cached(candidates, state, shards)
    return shards
