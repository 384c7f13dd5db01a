"""Starts a run from the weights of --init_checkpoint."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from trainer.checkpoints import model_file, restore, search
from trainer.config import FineTuningConfig, RunConfig
from trainer.config.fine_tuning import Scopes
from trainer.errors import UserError
from trainer.graph.averages import SUFFIX
from trainer.process import texts

_SHOWN = 3  # Classes in a message.


class Head(NamedTuple):
    """The purpose of the layer that makes the logits.

    Attributes:
      class_names: names of the classes, by label; None: not known.
      loss: value of --loss.
    """

    class_names: tuple[str, ...] | None
    loss: str


class WarmStart:
    """The start of a run: from the weights that flags name, or as initialized."""

    def __init__(
        self, init_checkpoint: str | None, config: FineTuningConfig, head: Head | None = None
    ) -> None:
        """Creates the start of the network in the default graph.

        Args:
          init_checkpoint: what to start from, as --init_checkpoint takes it; None: from nothing.
          config: what is taken from it.
          head: what this run's logits are for, to be compared with the checkpoint's; None: they
            are not compared.
        """
        self._given = init_checkpoint
        self._head = head
        self._config = config
        self._network = restore.network_variables()
        self._trainable = {variable.op.name for variable in tf1.trainable_variables()}
        self._averages = {v.op.name: v for v in tf1.global_variables() if SUFFIX in v.op.name}

    def load(self, session: tf1.Session) -> tuple[str, ...]:
        """Loads the weights into a session's network; returns messages about it.

        Raises:
          UserError: the checkpoint is missing, damaged or of another network, a scope is none of
            the network's, or nothing is taken from the checkpoint.
        """
        if self._given is None:
            return ()
        chosen = search.resolve(self._given)
        reader = restore.open_checkpoint(chosen.prefix)
        variables = self._divide(reader, chosen.prefix)
        values = [(each, reader.get_tensor(source)) for each, source in variables.loaded]
        _refuse_infinite(chosen.prefix, values)
        averages = [
            (self._averages[f"{variable.op.name}{SUFFIX}"], value)
            for variable, value in values
            if f"{variable.op.name}{SUFFIX}" in self._averages
        ]
        restore.assign(session, [*values, *averages])
        return (
            *chosen.remarks,
            f"started from the weights of {chosen.prefix}",
            *self._describe(variables, reader.get_variable_to_shape_map()),
            *self._describe_head(variables),
        )

    def _divide(self, reader: Any, prefix: str) -> "_Variables":
        """Returns which variables are loaded, and which stay as initialized."""
        excluded = self._find_excluded()
        sources = restore.choose_sources(
            reader, prefix, self._network, averages=self._config.init_averages
        )
        saved = restore.list_saved(reader)
        loaded: list[tuple[tf.Variable, str]] = []
        fresh: list[tf.Variable] = []
        wrong: list[str] = []
        for variable, source in zip(self._network, sources, strict=True):
            differences = restore.list_differences(saved, [variable], [source])
            may_differ = self._config.ignore_missing or models.is_of_head(variable.op.name)
            if variable.op.name in excluded or (differences and may_differ):
                fresh.append(variable)
            elif differences:
                wrong += differences
            else:
                loaded.append((variable, source))
        restore.refuse_differences(prefix, wrong)
        if not loaded:
            raise UserError(
                f"--init_checkpoint: must have some of the network's variables, got {prefix}, of "
                "which nothing is taken"
            )
        return _Variables(loaded, fresh)

    def _find_excluded(self) -> set[str]:
        """Returns the names of the variables that --exclude_scopes names."""
        if self._config.exclude_scopes is None:
            return set()
        names = [variable.op.name for variable in self._network]
        scopes = Scopes(self._config.exclude_scopes)
        unused = scopes.list_unused(names)
        if unused:
            raise UserError(
                f"--exclude_scopes: {unused[0]!r} must be a scope of the network's variables, "
                f"which are in {', '.join(_cover(names, names, least_parts=2))}"
            )
        return {name for name in names if scopes.match(name)}

    def _describe(self, variables: "_Variables", saved: Sequence[str]) -> list[str]:
        """Returns a line each about what is loaded, what is not, and what nobody takes."""
        names = [variable.op.name for variable in self._network]
        loaded = [variable.op.name for variable, _ in variables.loaded]
        fresh = [variable.op.name for variable in variables.fresh]
        taken = {
            name for variable, source in variables.loaded for name in (source, variable.op.name)
        }
        # Slots and averages have names within their variables': hundreds, which say nothing new.
        others = [name for name in saved if name.rpartition("/")[0] not in saved]
        left = sorted(name for name in others if name not in taken)
        extra = sum(name not in taken for name in saved) - len(left)
        averaged = sum(source.endswith(SUFFIX) for _, source in variables.loaded)
        some = f"{averaged} of them " if averaged < len(loaded) else "their "
        of_averages = f": {some}averages" if averaged else ""
        lines = [_line("loaded", loaded, names) + of_averages]
        if fresh:
            lines.append(_line("initialized afresh", fresh, names))
        if left:
            lines.append(_line("not taken from the checkpoint", left, sorted(others)))
        if extra:
            lines.append(f"nor {extra} variables of an optimizer, or averages")
        if self._config.trainable_scopes is not None:
            scopes = Scopes(self._config.trainable_scopes)
            idle = [name for name in fresh if name in self._trainable and not scopes.match(name)]
            if idle:
                lines.append(
                    f"{_line('initialized afresh, and not trained', idle, names)}: "
                    "--trainable_scopes does not name them"
                )
        return lines

    def _describe_head(self, variables: "_Variables") -> list[str]:
        """Returns a line where the layer that makes the logits was trained for something else."""
        head = [v.op.name for v, _ in variables.loaded if models.is_of_head(v.op.name)]
        found = None
        if head and self._head is not None:
            with contextlib.suppress(UserError):  # A damaged one, which training does not need.
                found = model_file.find(RunConfig(init_checkpoint=self._given))
        if found is None or self._head is None:
            return []
        lines = []
        scopes = self._config.trainable_scopes
        is_trained = scopes is None or any(map(Scopes(scopes).match, head))
        theirs, ours = found.class_names, self._head.class_names
        if theirs and ours and theirs != ours:
            lines.append(
                f"the layer that makes the logits is loaded as it is, and was made for "
                f"{_list_some(theirs)} ({found.path}), where this data has {_list_some(ours)}: "
                f"--exclude_scopes=logits initializes it afresh"
                + ("" if is_trained else "; and it is not trained")
            )
        loss = found.flags.get("loss", self._head.loss)
        if loss != self._head.loss:
            lines.append(
                f"the layer that makes the logits was made with --loss={loss} ({found.path}); this "
                f"run has --loss={self._head.loss}"
            )
        return lines


class _Variables(NamedTuple):
    """A network's variables, by what they begin with.

    Attributes:
      loaded: variables that are loaded, with the names that they have in the checkpoint.
      fresh: variables that stay as initialized.
    """

    loaded: list[tuple[tf.Variable, str]]
    fresh: list[tf.Variable]


def _refuse_infinite(prefix: str, values: Sequence[tuple[tf.Variable, Any]]) -> None:
    """Raises a UserError where a value that is to be loaded is not finite: no step would be."""
    for variable, value in values:
        if not np.all(np.isfinite(value)):
            raise UserError(
                f"--init_checkpoint: must have finite values, got {prefix}, where those of "
                f"{variable.op.name} are not: it was saved after the training had failed"
            )


def _list_some(names: Sequence[str]) -> str:
    """Returns the first of some classes, and how many others there are, as one phrase."""
    shown = ", ".join(texts.printable(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more}"


def _line(title: str, names: Sequence[str], among: Sequence[str]) -> str:
    count = f"{len(names)} variable{'' if len(names) == 1 else 's'}"
    return f"{title}: {', '.join(_cover(names, among))} ({count})"


def _cover(names: Sequence[str], among: Sequence[str], *, least_parts: int = 1) -> list[str]:
    """Returns the outermost scopes that hold all of `names` and nothing else of `among`.

    Args:
      names: names of variables.
      among: names of all variables.
      least_parts: number of parts that a scope has at least, where a name has as many.
    """
    chosen = set(names)
    outside = [name for name in among if name not in chosen]
    scopes: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        ends = range(min(least_parts, len(parts)), len(parts) + 1)
        prefixes = ("/".join(parts[:end]) for end in ends)
        # A name may be the scope of others, as a variable's is that of its optimizer's slots.
        alone = (p for p in prefixes if not any(f"{o}/".startswith(f"{p}/") for o in outside))
        scopes[next(alone, name)] = None
    return list(scopes)
