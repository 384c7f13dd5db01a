"""What a killed run leaves half written goes; what belongs there stays."""

from trainer.safety import leftovers

HALF_WRITTEN = (
    ".status.json.4711",
    ".metrics.jsonl.4711",
    ".checkpoints.json.4711",
    ".checkpoint.4711",
    ".run.lock.host.example.4711",
    ".saving/model.ckpt-7.data-00000-of-00001",
    "best/.checkpoints.json.4711",
)
WHOLE = (
    "status.json",
    "metrics.jsonl",
    "run.lock",
    "checkpoint",
    "checkpoints.json",
    "model.ckpt-7.index",
    "events.out.tfevents.1.host.2",
    "best/checkpoint",
    ".notes.4711",
)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_what_is_half_written_is_removed(tmp_path):
    for name in (*HALF_WRITTEN, *WHOLE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    leftovers.remove(str(tmp_path), rank=1)
    assert files_in(tmp_path) == sorted((*HALF_WRITTEN, *WHOLE))
    leftovers.remove(str(tmp_path), rank=0)
    assert files_in(tmp_path) == sorted(WHOLE)
    assert not (tmp_path / ".saving").exists()
    leftovers.remove(None, rank=0)
