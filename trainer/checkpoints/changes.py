"""Compares a run with the one that made the checkpoint it resumes from."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.checkpoints.manifest import RunFacts
from trainer.checkpoints.model_file import LEFT_TO_DATA
from trainer.config import Config
from trainer.config.statement import AUTO

# Flags whose changes are not reported: they do not affect what is computed.
_SILENT = frozenset(flag.name for flag in Config().flags() if not flag.statement.changes_training)
# What a flag was before there was the flag.
_BEFORE = {
    flag.name: flag.default if flag.statement.before is None else flag.statement.before
    for flag in Config().flags()
}


def describe(before: RunFacts, now: RunFacts) -> list[str]:
    """Returns one line for each kind of change; none where the two runs compute the same.

    Args:
      before: the facts of the run that made the checkpoint.
      now: the facts of this run.
    """
    lines = []
    flags = list_flags(before, now)
    if flags:
        lines.append(f"flags that have changed since: {', '.join(flags)}")
    versions = [*_changed(before.versions, now.versions)]
    if versions:
        lines.append(f"versions that have changed since: {', '.join(versions)}")
    if before.kernels not in (None, now.kernels):
        lines.append(
            f"the compiled kernels were {before.kernels}, now they are {now.kernels}: results are "
            "rounded otherwise, and bits will differ"
        )
    if before.fingerprint != now.fingerprint:
        lines.append("the data has changed since: the run goes on with another order of examples")
    return lines


def list_flags(before: RunFacts, now: RunFacts) -> list[str]:
    """Returns the flags that have other values now, of those that affect what is computed."""
    config = _flatten(now.config)
    # A checkpoint of an earlier version lacks newer flags.
    earlier = {name: _BEFORE.get(name) for name in config} | _flatten(before.config)
    # Earlier versions did not write what the data decided.
    is_open = earlier.get(LEFT_TO_DATA) == AUTO
    skip = _SILENT | {LEFT_TO_DATA} if is_open else _SILENT
    return [*_changed(earlier, config, skip=skip)]


def is_as_long(before: RunFacts, now: RunFacts) -> bool:
    """Returns whether both runs were given the same length, in steps or in epochs."""
    flags = [_flatten(facts.config) for facts in (before, now)]
    return all(flags[0].get(name) == flags[1].get(name) for name in ("steps", "epochs"))


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags by name, without their groups."""
    groups = (value for value in config.values() if isinstance(value, Mapping))
    return {name: value for group in groups for name, value in group.items()}


def _changed(
    before: Mapping[str, Any], now: Mapping[str, Any], skip: frozenset[str] = frozenset()
) -> Iterator[str]:
    for name in sorted({*before, *now} - skip):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield f"{name} {old} -> {new}"
