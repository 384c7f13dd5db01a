"""The house stays as it is drawn: which package may import which."""

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flags", "models", "trainer", "scripts", "tests")
ALLOWED = {
    "models": {"models"},
    "flags": {"flags", "trainer.config", "trainer.errors"},
    "trainer": {"trainer", "models"},
    "scripts": {"scripts", "trainer", "flags"},
}


def python_files(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(path):
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    for path in python_files(package):
        allowed = set(ALLOWED[package])
        if path == ROOT / "trainer" / "__main__.py":
            allowed.add("flags")
        for module in imported_modules(path):
            if module.split(".")[0] not in PACKAGES:
                continue
            parents = {module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)}
            is_own_package = package == "flags" and module == "trainer"
            assert is_own_package or parents & allowed, f"{path.name} imports {module}"


def test_one_module_imports_horovod():
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ("flags", "models", "trainer")
        for path in python_files(package)
        if "horovod.tensorflow" in path.read_text(encoding="utf-8")
        and path.name not in ("doctor.py",)  # It runs that import in a process of its own.
    }
    assert importers == {"trainer/distributed.py"}
    for package in ("flags", "models", "trainer"):
        for path in python_files(package):
            assert not any(name.startswith("horovod") for name in imported_modules(path)), path


def test_only_slim_compat_imports_tf_slim():
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ("flags", "models", "trainer", "scripts")
        for path in python_files(package)
        if any(name.split(".")[0] == "tf_slim" for name in imported_modules(path))
    }
    assert importers == {"models/slim_compat.py"}


def test_flags_and_configuration_need_no_tensorflow():
    for path in (*python_files("flags"), *python_files("trainer/config")):
        modules = {name.split(".")[0] for name in imported_modules(path)}
        assert not modules & {"tensorflow", "tf_slim", "horovod"}, path


def programs():
    files = (path for path in python_files("scripts") if path.read_text().startswith("#!"))
    return {path.name: path for path in files}


@pytest.mark.parametrize("path", programs().values(), ids=lambda path: path.name)
def test_a_program_can_be_started_by_its_name_and_finds_what_it_imports(path):
    assert os.access(path, os.X_OK)
    ready = sys.stdlib_module_names | {"worker_environment"}
    imports = [name.split(".")[0] for name in imported_modules(path)]
    needing = [name for name in imports if name not in ready]
    assert not needing or needing[0] == "program"
