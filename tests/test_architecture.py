"""The package tree stays as it is drawn: which room may use which, and how large its files are.

docs/architecture.md says why. A room is a package or a module; the one with the longest name that
fits a module is its room.
"""

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flags", "models", "trainer", "scripts", "tests")

# The rooms of the program, in order: each may use those above it, and itself.
ROOMS = (
    "trainer.exit_status",
    "trainer.errors",
    "models",
    "trainer.config",
    "trainer.plan",
    "trainer.timing",
    "trainer.process",
    "trainer.cpu_kernels",
    "trainer.machine",
    "trainer.distributed",
    "trainer.inputs.source",
    "trainer.inputs.images",
    "trainer.inputs.sources",
    "trainer.inputs",
    "trainer.inputs.conversion",
    "trainer.graph",
    "trainer.checkpoints",
    "trainer.telemetry.step",
    "trainer.telemetry.tags",
    "trainer.telemetry.writers",
    "trainer.telemetry.pages",
    "trainer.telemetry",
    "trainer.safety",
    "trainer.run",
    "trainer.benchmark",
    "trainer.modes",
    "trainer.__main__",
)
# What is outside of that order, and the rooms that it may use.
OUTSIDE = {
    "flags": ("flags", "trainer.config", "trainer.errors"),
    "scripts": ("scripts", "flags", *ROOMS),
}
MAY_USE = OUTSIDE | {room: ROOMS[: number + 1] for number, room in enumerate(ROOMS)}
MAY_USE["models"] = ("models",)
MAY_USE["trainer.__main__"] = ("flags", *ROOMS)

# The rooms that are loaded before TensorFlow, whose import takes seconds, or without it.
LIGHT = (
    "flags",
    "trainer.exit_status",
    "trainer.errors",
    "trainer.config",
    "trainer.plan",
    "trainer.timing",
    "trainer.process",
)

MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 80
MOST_FILES_AT_THE_ROOT = 12


def python_files(root, package):
    folder = root / package
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(root, path):
    """The name by which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"trainer.{'.' * node.level}{node.module or ''}"  # Which is in no room.
        elif isinstance(node, ast.ImportFrom):
            # A name may be a module of the package, or something in it.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module, rooms):
    """The room of a module, or of a name in one; None: it has none."""
    found = [room for room in rooms if f"{module}.".startswith(f"{room}.")]
    return max(found, key=len, default=None)


def modules_of(root):
    """Every module of the program and of scripts, with its file."""
    files = (path for package in PACKAGES[:-1] for path in python_files(root, package))
    return {name_of(root, path): path for path in files}


def faults_of_imports(root):
    """One line for each import that no room may have."""
    modules = modules_of(root)
    for name, path in modules.items():
        # The root package itself has a docstring alone; scripts find each other by short names.
        room = room_of(name, MAY_USE)
        for imported in imported_modules(path):
            if imported.split(".")[0] not in PACKAGES or imported == "trainer":
                continue
            target = room_of(imported, MAY_USE) or "tests"
            if room is None or target not in MAY_USE[room]:
                yield f"{name} imports {imported}"
            if room == "trainer.modes" and target == room:
                mode, other = (each.split(".")[2:3] for each in (name, imported))
                if mode and mode != other:
                    yield f"{name} imports another mode: {imported}"


def faults_of_libraries(root):
    """One line for each import of a library in a room that must do without it."""
    for name, path in modules_of(root).items():
        libraries = {imported.split(".")[0] for imported in imported_modules(path)}
        if room_of(name, MAY_USE) in LIGHT:
            heavy = libraries & {"tensorflow", "tf_slim", "models"}
            yield from (f"{name} imports {library}" for library in heavy)
        text = path.read_text(encoding="utf-8")
        is_importer = "horovod" in libraries or '"horovod.tensorflow"' in text
        if is_importer and name.split(".")[0] != "scripts" and name != "trainer.distributed":
            yield f"{name} imports horovod"
        if "tf_slim" in libraries and name != "models.slim_compat":
            yield f"{name} imports tf_slim"


def faults_of_size(root):
    """One line for each file, function and folder that is too large."""
    sources = [*(path for package in PACKAGES for path in python_files(root, package))]
    compiled = [path for end in ("*.cc", "*.h") for path in root.glob(f"[ts]*/**/{end}")]
    for path in (*sources, *compiled):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{path.relative_to(root)} has {lines} lines"
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    yield f"{path.relative_to(root)}: {node.name} has {lines} lines"
    at_root = [path for path in (root / "trainer").iterdir() if path.is_file()]
    if len(at_root) > MOST_FILES_AT_THE_ROOT:
        yield f"trainer has {len(at_root)} files"


def test_no_room_uses_one_that_comes_after_it():
    assert list(faults_of_imports(ROOT)) == []


def test_libraries_are_imported_where_they_may_be():
    assert list(faults_of_libraries(ROOT)) == []


def test_files_and_functions_are_small():
    assert list(faults_of_size(ROOT)) == []


def test_every_module_of_the_program_has_a_room():
    """So that a new package is put into the table, at its place in the order."""
    modules = set(modules_of(ROOT)) - {"trainer"}
    assert [name for name in modules if room_of(name, MAY_USE) is None] == []
    folders = {f"trainer.{path.name}" for path in (ROOT / "trainer").iterdir() if path.is_dir()}
    assert folders - {"trainer.__pycache__"} <= set(ROOMS)


# A small package tree: what is written into one of its files, and what the tests above say of it.
FAULTS = {
    "against the order": (
        "trainer/graph/losses.py",
        "from trainer.telemetry import console\n",
        "trainer.graph.losses imports trainer.telemetry.console",
    ),
    "against the order, within a function": (
        "trainer/inputs/images/decoder.py",
        "def decode():\n    import trainer.inputs.dataset\n",
        "trainer.inputs.images.decoder imports trainer.inputs.dataset",
    ),
    "TensorFlow before it may be loaded": (
        "trainer/process/files.py",
        "import tensorflow as tf\n",
        "trainer.process.files imports tensorflow",
    ),
    "TensorFlow in a module that does without": (
        "trainer/plan.py",
        "import tensorflow as tf\n",
        "trainer.plan imports tensorflow",
    ),
    "TensorFlow by way of the networks": (
        "trainer/process/files.py",
        "from models import registry\n",
        "trainer.process.files imports models",
    ),
    "a relative import, which says no room": (
        "trainer/modes/predict.py",
        "from .export import run\n",
        "trainer.modes.predict imports trainer..export",
    ),
    "a second importer of Horovod": (
        "trainer/run/setup.py",
        "import horovod.tensorflow as hvd\n",
        "trainer.run.setup imports horovod",
    ),
    "a second importer of Horovod, by its name": (
        "trainer/run/setup.py",
        'import importlib\nhvd = importlib.import_module("horovod.tensorflow")\n',
        "trainer.run.setup imports horovod",
    ),
    "a second importer of tf-slim": (
        "trainer/graph/network.py",
        "import tf_slim as slim\n",
        "trainer.graph.network imports tf_slim",
    ),
    "a mode that imports a mode": (
        "trainer/modes/predict.py",
        "from trainer.modes import export\n",
        "trainer.modes.predict imports another mode: trainer.modes.export",
    ),
    "the program that uses a script": (
        "trainer/run/setup.py",
        "from scripts import report\n",
        "trainer.run.setup imports scripts.report",
    ),
    "the program that uses a test": (
        "trainer/run/setup.py",
        "from tests import tiny\n",
        "trainer.run.setup imports tests.tiny",
    ),
    "models that use the trainer": (
        "models/resnet_v2.py",
        "from trainer.errors import UserError\n",
        "models.resnet_v2 imports trainer.errors.UserError",
    ),
    "a flag that is read in the trainer": (
        "trainer/graph/losses.py",
        "from flags import command_line\n",
        "trainer.graph.losses imports flags.command_line",
    ),
    "a file that is too long": (
        "trainer/plan.py",
        "x = 1\n" * 351,
        "trainer/plan.py has 351 lines",
    ),
    "a kernel that is too long": (
        "trainer/cpu_kernels/src/winograd.h",
        "//\n" * 351,
        "trainer/cpu_kernels/src/winograd.h has 351 lines",
    ),
    "a function that is too long": (
        "trainer/plan.py",
        "def f():\n" + "    x = 1\n" * 80,
        "trainer/plan.py: f has 81 lines",
    ),
}


@pytest.fixture
def small_house(tmp_path):
    """A tree in which nothing is wrong."""
    for package in ("flags", "models", "scripts", "tests", "trainer", "trainer/modes"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A room."""\n', encoding="utf-8")
    good = tmp_path / "trainer" / "modes" / "train.py"
    good.write_text("from trainer.graph import losses\nfrom models import get\n", encoding="utf-8")
    assert faults_of(tmp_path) == []
    return tmp_path


def faults_of(root):
    return [*faults_of_imports(root), *faults_of_libraries(root), *faults_of_size(root)]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_small_house_is_found(small_house, name):
    path, text, fault = FAULTS[name]
    (small_house / path).parent.mkdir(parents=True, exist_ok=True)
    (small_house / path).write_text(text, encoding="utf-8")
    assert faults_of(small_house) == [fault]


def test_too_many_files_at_the_root_of_the_trainer_are_found(small_house):
    for number in range(MOST_FILES_AT_THE_ROOT):
        (small_house / "trainer" / f"file{number}.txt").touch()
    assert faults_of(small_house) == ["trainer has 13 files"]


def programs():
    files = (path for path in python_files(ROOT, "scripts") if path.read_text().startswith("#!"))
    return {path.name: path for path in files}


@pytest.mark.parametrize("path", programs().values(), ids=lambda path: path.name)
def test_a_program_can_be_started_by_its_name_and_finds_what_it_imports(path):
    assert os.access(path, os.X_OK)
    ready = sys.stdlib_module_names | {"worker_environment"}
    imports = [name.split(".")[0] for name in imported_modules(path)]
    needing = [name for name in imports if name not in ready]
    assert not needing or needing[0] == "shared"
