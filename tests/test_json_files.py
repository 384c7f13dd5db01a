"""The JSON files of this program, damaged in every way: a line with the file, or all goes on."""

import copy
import json
import random
from pathlib import Path

from shared import run_logs

import pytest

from trainer.checkpoints import layout, manifest, model_file
from trainer.config import Config, RunConfig
from trainer.errors import UserError
from trainer.inputs.conversion import shard_writer
from trainer.inputs.dataset import DatasetInfo
from trainer.inputs.sources import manifest as dataset_manifest
from trainer.process import json_files
from trainer.run import outputs
from trainer.safety import lock_holder, status
from trainer.telemetry.writers import metrics_lines
from trainer.telemetry.writers.run_writer import create_writer

MUTATIONS = 500


def write_files(folder):
    """Good ones; returns their names."""
    config = Config(run=RunConfig(logdir=str(folder)))
    model_file.write(folder, config, ["a", "b"])
    facts = manifest.RunFacts(2, 16, 60, 90, "data", {"python": "3.11"}, {"run": {"steps": 60}})
    saved = (manifest.SavedFile("model.ckpt-5.index", 10, 20),)
    entry = manifest.Entry(5, 0.9, 80, "2026-01-01T00:00:00+00:00", saved, facts, 0.5)
    manifest.write(folder, manifest.Manifest((entry,)))
    status.Status(str(folder), rank=0).set("finished", step=5)
    (folder / lock_holder.FILE_NAME).write_text(
        lock_holder.as_text(lock_holder.of_this_process(), 1)
    )
    lines = [
        {"step": n, "wall_time": 1.0, "perf/step_time_ms": 2.0, "eval/top1": 0.5} for n in (1, 2)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / metrics_lines.NAME).write_text(text)
    shard = dataset_manifest.Shard("train-00000-of-00001", 3, 100, 7)
    described = dataset_manifest.Manifest("x", ("a", "b"), 0, {"train": (shard,)}, (8, 8), (9, 9))
    dataset_manifest.write_manifest(str(folder), described)
    task = shard_writer.Task(str(folder / "train-00000-of-00001"), digest="digest", images=())
    shard_writer.convert_shard(task)
    return task


def read_all(folder, task):
    """The functions that read each of the files: each may raise UserError alone."""
    logdir = str(folder)
    config = Config(run=RunConfig(logdir=logdir))
    info = DatasetInfo("folder", 4, 0, 1, ("a",), "")
    return {
        layout.MODEL: (
            lambda: outputs.as_trained(config),
            lambda: outputs.check_classes(config, outputs.Worker(), info),
            lambda: run_logs.read_flags(folder, str),
        ),
        layout.MANIFEST: (lambda: manifest.read(folder),),
        status.FILE_NAME: (lambda: status.read(folder), lambda: refuse(logdir)),
        lock_holder.FILE_NAME: (lambda: lock_holder.find_alive(folder),),
        metrics_lines.NAME: (
            lambda: metrics_lines.newest_step(folder / metrics_lines.NAME, "eval/top1"),
            lambda: create_writer(logdir, rank=0, first_step=2).close(),
            lambda: run_logs.read_curves(folder),
        ),
        dataset_manifest.FILE_NAME: (lambda: dataset_manifest.read_manifest(logdir),),
        Path(shard_writer.receipt_path(task.path)).name: (lambda: shard_writer.find_receipt(task),),
    }


def refuse(logdir):
    status.Status(logdir, rank=0).set("failed", reason="refused")


STRANGE = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    "",
    "text",
    [],
    {},
    [[]],
    {"a": 1},
    "../up",
    "\0",
    1e308,
)


def places_in(value, path=()):
    """The path of every value within a value."""
    yield path
    inner = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, each in inner:
        yield from places_in(each, (*path, key))


def change(value, rng):
    """A copy in which one value is another one, is gone, or has company."""
    value = copy.deepcopy(value)
    path = rng.choice([place for place in places_in(value) if place])
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.randrange(4)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1 and isinstance(parent, dict):
        parent["of another version"] = rng.choice(STRANGE)
    else:
        parent[path[-1]] = rng.choice(STRANGE)
    return value


def mutate(content, rng):
    """The bytes of a damaged file: seldom JSON at all, often JSON of another shape."""
    kind = rng.randrange(10)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    if kind == 2:
        return content.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if kind == 3:
        deep = 100_000
        return rng.choice([b"[" * deep, b'{"step":' * deep, b"9" * deep, b"NaN", b"-Infinity", b""])
    if kind == 4:
        return json.dumps(rng.choice(STRANGE)).encode()
    lines = content.splitlines() if content.count(b"\n{") else [content]
    chosen = rng.randrange(len(lines))
    lines[chosen] = json.dumps(change(json.loads(lines[chosen]), rng)).encode()
    return b"\n".join(lines) + b"\n"


@pytest.mark.slow
def test_no_damage_is_a_traceback(tmp_path):
    task = write_files(tmp_path)
    rng = random.Random(0)
    readers = read_all(tmp_path, task)
    good = {name: (tmp_path / name).read_bytes() for name in readers}
    said = []
    for number in range(MUTATIONS):
        name = list(readers)[number % len(readers)]
        content = mutate(good[name], rng)
        for read in readers[name]:
            (tmp_path / name).write_bytes(content)
            try:
                read()
            except UserError as error:
                said.append((name, content, str(error)))
            except Exception as error:
                raise AssertionError(f"{name}: {content[:300]!r}") from error
        (tmp_path / name).write_bytes(good[name])
    for name, content, line in said:
        assert name in line, (content[:200], line)
        assert "\n" not in line, (content[:200], line)
    refused = {name for name, _, _ in said}
    assert refused == {layout.MODEL, dataset_manifest.FILE_NAME, metrics_lines.NAME}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "it is a list, not an object"),
        ({"format": "x"}, "checkpoints is missing"),
        ({"format": 1, "checkpoints": []}, "format is 1, not a text"),
        ({"format": "x", "checkpoints": [3]}, r"checkpoints\[0\] is 3, not an object"),
        ({"format": "x", "checkpoints": [], "more": 1}, "more is unknown"),
    ],
)
def test_a_fault_is_named_by_its_place(value, fault):
    with pytest.raises(json_files.FormatError, match=f"^{fault}$"):
        json_files.build(manifest._Content, value)


def test_what_is_right_is_built():
    kind = manifest.Entry
    facts = {
        "workers": 1,
        "global_batch_size": 2,
        "total_steps": 3,
        "train_examples": 4,
        "fingerprint": "f",
        "versions": {"a": "1"},
        "config": {"b": [1, {}]},
    }
    files = [{"name": "n", "bytes": 1, "crc32c": 2}]
    fields = {"step": 1, "epoch": 2, "examples": 3, "saved_at": "", "files": files, "run": facts}
    found = json_files.build(kind, fields)
    assert found == kind(
        1, 2.0, 3, "", (manifest.SavedFile("n", 1, 2),), manifest.RunFacts(**facts)
    )
    assert isinstance(found.epoch, float)
