"""The changes of docs/extending.md, made in a copy of the code: it trains, and they show."""

import json
import re
import shutil
import sys

import pytest
from processes import ROOT, run

PAGE = ROOT / "docs" / "extending.md"
TRAIN = [sys.executable, "-m", "trainer"]
FLAGS = [
    "--model=my_nets:small_net",
    "--dataset=my_data:open_squares",
    "--optimizer=adagrad",
    "--adam_epsilon=1e-7",
    "--base_learning_rate=0.01",
    "--image_size=16",
    "--batch_size=8",
    "--batch_norm_decay=0.5",
    "--steps=12",
    "--checkpoint_every=6",
]


def blocks(language):
    """The page's blocks of code in a language, each with the line above it."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"^([^\n]*)\n+```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def apply(root, block):
    """Makes the change of a block: what it shows must be there once."""
    name, *lines = block.splitlines(keepends=True)
    path = root / name.removeprefix("--- ").strip()
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, block
    path.write_text(text.replace(before, after), encoding="utf-8")


def write_modules(folder, *, plug_ins_only=False):
    """Writes the page's modules of code into a folder: plug-ins, and those of the program."""
    for above, code in blocks("python"):
        name = above.strip("`:")
        if not plug_ins_only or "/" not in name:
            (folder / name).write_text(code, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the code with all changes of the page, and a run that uses them."""
    root = tmp_path_factory.mktemp("extended")
    for package in ("flags", "models", "trainer"):
        shutil.copytree(ROOT / package, root / package)
    write_modules(root)
    # Images in the format that one of the changes adds.
    data = root / "my_data.py"
    data.write_text(data.read_text(encoding="utf-8").replace('"PNG"', '"PPM"'), encoding="utf-8")
    for _, block in blocks("diff"):
        apply(root, block)
    (root / "result").mkdir()
    flags = ["--logdir=run", "--mirror_dir=mirror", "--result_json=result/result.json"]
    done = run([*TRAIN, *FLAGS, *flags], cwd=root, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    return root


pytestmark = pytest.mark.processes


def test_a_network_and_a_data_set_need_no_change_of_the_code(tmp_path):
    write_modules(tmp_path, plug_ins_only=True)
    flags = [flag for flag in FLAGS if not re.match("--(optimizer|adam_epsilon)=", flag)]
    done = run([*TRAIN, *flags, "--steps=2"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout


def test_network_data_set_format_and_optimizer_train(extended):
    """Images that are read as PPM, of two kinds that any network tells apart."""
    result = json.loads((extended / "result" / "result.json").read_text())
    assert result["config"]["optimizer"]["optimizer"] == "adagrad"
    assert result["result"]["steps"] == 12
    assert result["result"]["eval"]["count"] == 16
    assert result["result"]["eval"]["top1"] == 1.0


def test_the_scalar_is_logged_at_every_step(extended):
    lines = map(json.loads, (extended / "run" / "metrics.jsonl").read_text().splitlines())
    norms = {line["step"]: line["train/weight_norm"] for line in lines if "train/loss" in line}
    assert sorted(norms) == list(range(1, 13))
    assert all(norm > 0 for norm in norms.values())


def test_the_flag_is_known_wherever_its_statement_says(extended):
    result = json.loads((extended / "result" / "result.json").read_text())
    assert result["config"]["optimizer"]["adam_epsilon"] == 1e-7
    (event_file,) = (extended / "run").glob("events.out.tfevents.*")
    assert b"adam_epsilon" in event_file.read_bytes()  # In HParams.
    manifest = json.loads((extended / "run" / "checkpoints.json").read_text())
    recorded = manifest["checkpoints"][-1]["run"]["config"]["optimizer"]
    assert recorded["adam_epsilon"] == 1e-7


def test_the_store_has_copied_each_checkpoint(extended):
    for step in (6, 12):
        copies = sorted((extended / "mirror").glob(f"model.ckpt-{step}.*"))
        assert len(copies) == 2
        for copy in copies:
            assert copy.read_bytes() == (extended / "run" / copy.name).read_bytes()
