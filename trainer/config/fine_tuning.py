"""The flags of fine-tuning: what is taken from other weights, and what is trained."""

import dataclasses
import fnmatch
from collections.abc import Iterable

from trainer.config.statement import Checked, flag
from trainer.errors import ConfigError

_SYNTAX = (
    "comma-separated scopes, that is one or more whole parts of a variable's name between slashes, "
    "where * stands for anything within a part, such as logits or block4/unit_*"
)


class Scopes:
    """Scopes of variables, as flags name them."""

    def __init__(self, given: str) -> None:
        """Reads the value of a flag; see `_SYNTAX`."""
        self.patterns = tuple(part.strip().strip("/") for part in given.split(","))

    def match(self, name: str) -> bool:
        """Returns whether a variable's name has one of the scopes."""
        return any(_has(name, pattern) for pattern in self.patterns)

    def list_unused(self, names: Iterable[str]) -> list[str]:
        """Returns the patterns that none of the names has."""
        listed = list(names)
        return [each for each in self.patterns if not any(_has(name, each) for name in listed)]


def _has(name: str, pattern: str) -> bool:
    """Returns whether some successive parts of a name match the parts of a pattern."""
    parts, wanted = name.split("/"), pattern.split("/")
    return any(
        all(map(fnmatch.fnmatchcase, parts[start : start + len(wanted)], wanted))
        for start in range(len(parts) - len(wanted) + 1)
    )


@dataclasses.dataclass(frozen=True)
class FineTuningConfig(Checked):
    """The parts that a run takes from --init_checkpoint, and those that it trains."""

    exclude_scopes: str | None = flag(
        None,
        f"Variables that are not taken from --init_checkpoint, but initialized: {_SYNTAX}.",
        is_of_beginning=True,
        needs="init_checkpoint",
        elsewhere=("checkpoint_exclude_scopes",),
    )
    ignore_missing: bool = flag(
        False,
        "Initialize variables that --init_checkpoint lacks, or has in another shape, instead of "
        "refusing it.",
        is_of_beginning=True,
        needs="init_checkpoint",
        elsewhere=("ignore_missing_vars", "ignore_missing_checkpoint_vars"),
    )
    init_averages: bool = flag(
        False,
        "Take a checkpoint's averaged weights (.../ExponentialMovingAverage, as --ema_decay and "
        "slim save them): to start from, evaluate, export or predict with.",
        is_of_beginning=True,
        elsewhere=("use_ema", "use_averages"),
    )
    trainable_scopes: str | None = flag(
        None,
        "Variables to train, as in --exclude_scopes; the others keep their values. Default: all.",
        is_hparam=True,
    )
    freeze_batch_norm: bool = flag(
        False,
        "BN of what is not trained, or without --trainable_scopes all BN, normalizes by its stored "
        "statistics, which stay as they are, with its scale and offset.",
        is_hparam=True,
        elsewhere=("freeze_bn",),
    )
    head_learning_rate_multiplier: float = flag(
        1.0,
        "Factor of the learning rate of the layer `logits`.",
        above=0.0,
        is_hparam=True,
        elsewhere=("head_lr_multiplier", "classifier_lr_multiplier"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exclude_scopes", "trainable_scopes"):
            value = getattr(self, name)
            if value is not None and not all(Scopes(value).patterns):
                raise ConfigError(f"--{name}: must be {_SYNTAX}, got {value!r}")
