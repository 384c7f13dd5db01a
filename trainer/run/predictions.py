"""The files of --predictions_csv and --predictions_jsonl: what a network says of each example."""

import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from trainer.config.prediction import STANDARD_OUTPUT, PredictionConfig
from trainer.errors import UserError, status_of
from trainer.graph import accuracy
from trainer.process import files, texts


class Prediction(NamedTuple):
    """A network's prediction for an example.

    Attributes:
      name: file of the example, or place in the data set.
      logits: float32 [num_classes].
      probabilities: float32 [num_classes].
      label: class that it belongs to; None: not known.
    """

    name: str
    logits: npt.NDArray[Any]
    probabilities: npt.NDArray[Any]
    label: int | None = None

    def best(self) -> list[int]:
        """Returns the most likely classes, the likeliest first, at most `accuracy.BEST`.

        By logits, since different ones may have the same probability, as rounded; of equal ones
        the smaller number comes first. None where a logit is not a number.
        """
        if np.isnan(self.logits).any():
            return []
        return [int(index) for index in np.argsort(-self.logits, kind="stable")[: accuracy.BEST]]

    def describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns number, name and probability of each of the most likely classes, for JSON."""
        return [
            {
                "class": number,
                "name": names[number],
                "probability": _finite(self.probabilities[number]),
            }
            for number in self.best()
        ]


def _finite(value: float) -> float | None:
    """Returns a number as JSON has it: None for one that is not finite."""
    return float(value) if math.isfinite(value) else None


class PredictionFiles:
    """Writes predictions, and the names of what could not be read, to the files that are open."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        table: TextIO | None,
        lines: TextIO | None,
        is_labelled: bool,
        has_logits: bool,
    ) -> None:
        """Writes the table's first row.

        Args:
          names: names of the classes.
          table: file of the CSV; None: none is wanted.
          lines: file of the JSON lines; None: none is wanted.
          is_labelled: whether examples have labels.
          has_logits: whether all logits are wanted.
        """
        self._names = names
        self._files = [file for file in (table, lines) if file is not None]
        self._lines = lines
        self._has_logits = has_logits
        columns = ["file", *(("label", "label_name") if is_labelled else ())]
        for place in range(1, min(accuracy.BEST, len(names)) + 1):
            columns += [f"class_{place}", f"name_{place}", f"probability_{place}"]
        columns += [f"logit_{number}" for number in range(len(names))] if has_logits else []
        self._table = None
        if table is not None:
            self._table = csv.DictWriter(table, [*columns, "error"], lineterminator="\n")
            self._table.writeheader()

    def add(self, prediction: Prediction) -> None:
        """Writes a prediction."""
        row = self._begin(prediction.name, prediction.label)
        record = dict(row)
        classes = prediction.describe(self._names)
        record["classes"] = classes
        for place, told in enumerate(classes, start=1):
            row |= {f"{key}_{place}": value for key, value in told.items()}
        if self._has_logits:
            logits = prediction.logits.tolist()
            record["logits"] = [_finite(value) for value in logits]
            row |= {f"logit_{number}": value for number, value in enumerate(logits)}
        self._write(row, record)

    def add_unreadable(self, name: str, reason: str, label: int | None = None) -> None:
        """Writes that an example is no image that can be read, with a line about why."""
        record = {**self._begin(name, label), "error": reason}
        self._write(record, record)

    def _begin(self, name: str, label: int | None) -> dict[str, Any]:
        """Returns the first fields of a row."""
        if label is None:
            return {"file": name}
        return {"file": name, "label": label, "label_name": self._names[label]}

    def _write(self, row: dict[str, Any], record: dict[str, Any]) -> None:
        if self._table is not None:
            self._table.writerow({key: _escape(value) for key, value in row.items()})
        if self._lines is not None:
            # ASCII, in which names that are no UTF-8 can be written too.
            self._lines.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Passes the rows on, so that who reads them from a pipe need not wait for more."""
        for file in self._files:
            file.flush()


def _escape(value: Any) -> Any:
    """Returns a value of the table; names in one line of valid text."""
    return texts.printable(value) if isinstance(value, str) else value


@contextlib.contextmanager
def open_files(
    config: PredictionConfig, names: Sequence[str], *, is_labelled: bool
) -> Iterator[PredictionFiles]:
    """Opens the files that the flags name; they are there at the end, whole or not at all.

    Args:
      config: names the files.
      names: names of the classes.
      is_labelled: whether examples have labels.

    Raises:
      UserError: a file can't be written.
    """
    with (
        _open("predictions_csv", config.predictions_csv) as table,
        _open("predictions_jsonl", config.predictions_jsonl) as lines,
    ):
        yield PredictionFiles(
            names,
            table=table,
            lines=lines,
            is_labelled=is_labelled,
            has_logits=config.predictions_logits,
        )


@contextlib.contextmanager
def _open(flag: str, path: str | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
    elif path == STANDARD_OUTPUT:
        yield sys.stdout
        sys.stdout.flush()
    else:
        try:
            with _open_file(path) as file:
                yield file
        except BrokenPipeError:
            raise  # Whoever reads has ended, as `head` does.
        except OSError as error:
            raise UserError(
                f"--{flag}: {path} could not be written ({error.strerror})",
                status=status_of(error),
            ) from error


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[TextIO]:
    if files.is_stream(path):
        with open(path, "a", encoding="utf-8", newline="") as stream:
            yield stream
    else:
        with (
            files.replacing(path) as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            yield file


def check_places(config: PredictionConfig) -> None:
    """Finds out before the work whether the files can be written.

    Raises:
      UserError: one of them can't.
    """
    for flag in ("predictions_csv", "predictions_jsonl"):
        path = getattr(config, flag)
        if path not in (None, STANDARD_OUTPUT):
            files.check_writable(path, flag, is_folder=False)
            files.sweep_beside(path)
