"""What the configuration states of a flag, and the check of its value."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from trainer.errors import ConfigError

T = TypeVar("T")


def flag(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> T:
    """A dataclass field that is also a flag.

    Args:
      default: the value without the flag. None: not given; the help says what happens then.
      help: one sentence, with the unit.
      minimum, above: inclusive and exclusive lower bound of a number.
      maximum, below: inclusive and exclusive upper bound of a number.
      choices: the allowed values of a string.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "below": below,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _broken_rule(value: Any, metadata: Any) -> str | None:
    """The rule that `value` breaks, in words, or None."""
    if metadata["choices"] is not None and value not in metadata["choices"]:
        return f"must be one of {', '.join(metadata['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if metadata["minimum"] is not None and value < metadata["minimum"]:
        return f"must be at least {metadata['minimum']}"
    if metadata["above"] is not None and value <= metadata["above"]:
        return f"must be greater than {metadata['above']}"
    if metadata["maximum"] is not None and value > metadata["maximum"]:
        return f"must be at most {metadata['maximum']}"
    if metadata["below"] is not None and value >= metadata["below"]:
        return f"must be less than {metadata['below']}"
    return None


class Checked:
    """Base of the groups below: checks every field against its own rule."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value == "":
                raise ConfigError(f"--{field.name}: must not be empty, got ''")
            rule = None if value is None else _broken_rule(value, field.metadata)
            if rule is not None:
                raise ConfigError(f"--{field.name}: {rule}, got {value!r}")
