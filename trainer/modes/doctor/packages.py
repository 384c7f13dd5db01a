"""Compares the packages that are installed with what setup.py allows."""

from collections.abc import Iterator
from importlib import metadata

from trainer.modes.doctor.finding import RENEW, Finding

_SHOWN = (
    "slim-horovod", "tensorflow", "tf-slim", "horovod", "tensorboard", "numpy", "protobuf",
    "absl-py",
)  # fmt: skip


def check_packages() -> Iterator[Finding]:
    """Yields each package's version, and whether setup.py allows it."""
    versions = {}
    for name in (*_SHOWN, "packaging"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "is not installed for this Python", RENEW)
            return
    from packaging.requirements import Requirement  # Only here is it known to be installed.

    rules = {
        rule.name: rule.specifier
        for rule in map(Requirement, metadata.requires("slim-horovod") or ())
        if rule.marker is None or rule.name == "horovod"
    }
    for name in _SHOWN:
        rule = rules.get(name)
        wrong = rule is not None and versions[name] not in rule
        yield Finding(
            name,
            f"{versions[name]} does not fit {rule}" if wrong else versions[name],
            RENEW if wrong else None,
        )
