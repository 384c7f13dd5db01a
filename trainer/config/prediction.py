"""The flags of what a trained network says of single examples."""

import dataclasses

from trainer.config.statement import Checked, PathKind, flag
from trainer.errors import ConfigError

_MODES = ("evaluate", "predict")
STANDARD_OUTPUT = "-"


@dataclasses.dataclass(frozen=True)
class PredictionConfig(Checked):
    """The files of predictions."""

    predictions_csv: str | None = flag(
        None,
        "Table for a row per example: its file, its label where it has one, the five most likely "
        "classes with names and probabilities. -: the standard output, row by row.",
        changes_training=False,
        path=PathKind.LOCAL,
        is_written=True,
        modes=_MODES,
    )
    predictions_jsonl: str | None = flag(
        None,
        "Likewise, as a JSON object in a line.",
        changes_training=False,
        path=PathKind.LOCAL,
        is_written=True,
        modes=_MODES,
    )
    predictions_logits: bool = flag(
        False,
        "Write all logits of each example, too.",
        changes_training=False,
        modes=_MODES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        paths = [path for path in (self.predictions_csv, self.predictions_jsonl) if path]
        if self.predictions_logits and not paths:
            raise ConfigError(
                "--predictions_logits: must be given with --predictions_csv or --predictions_jsonl"
            )

    @property
    def is_wanted(self) -> bool:
        """Returns whether any file is asked for."""
        return self.predictions_csv is not None or self.predictions_jsonl is not None

    @property
    def takes_standard_output(self) -> bool:
        """Returns whether a file is the standard output, where nothing else must be printed."""
        return STANDARD_OUTPUT in (self.predictions_csv, self.predictions_jsonl)
