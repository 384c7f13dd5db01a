"""The versions of this program and of the packages that it stands on, without loading any."""

import importlib.metadata
import platform

PACKAGES = ("tensorflow", "tf-slim", "horovod", "tensorboard", "absl-py", "numpy")


def find_version(package: str) -> str | None:
    """Returns the installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the `PACKAGES` that are installed."""
    found = {name: find_version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }


def describe() -> str:
    """Returns a line with the version of this program and of what decides how it behaves."""
    own = find_version("slim-horovod") or "(not installed)"  # It runs from a folder.
    found = versions()
    parts = [f"{name} {found[name]}" for name in PACKAGES[:3] if name in found]
    return ", ".join([f"slim-horovod {own} on Python {found['python']}", *parts])
