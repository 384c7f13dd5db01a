"""Starts a run from the weights of --init_checkpoint."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow.compat.v1 as tf1

import models
from trainer.checkpoints import restore, search
from trainer.config import FineTuningConfig
from trainer.config.fine_tuning import Scopes
from trainer.errors import UserError
from trainer.graph.averages import SUFFIX


class WarmStart:
    """The start of a run: from the weights that flags name, or as initialized."""

    def __init__(self, init_checkpoint: str | None, config: FineTuningConfig) -> None:
        """Creates the start of the network in the default graph.

        Args:
          init_checkpoint: what to start from, as --init_checkpoint takes it; None: from nothing.
          config: what is taken from it.
        """
        self._given = init_checkpoint
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
        plan = self._plan(reader, chosen.prefix)
        values = [(each, reader.get_tensor(source)) for each, source in plan.loaded]
        averages = [
            (self._averages[f"{variable.op.name}{SUFFIX}"], value)
            for variable, value in values
            if f"{variable.op.name}{SUFFIX}" in self._averages
        ]
        restore.assign(session, [*values, *averages])
        return (
            *chosen.remarks,
            f"started from the weights of {chosen.prefix}",
            *self._describe(plan, reader.get_variable_to_shape_map()),
        )

    def _plan(self, reader: Any, prefix: str) -> "_Plan":
        """Returns which variables are loaded, and which stay as initialized."""
        excluded = self._find_excluded()
        sources = restore.choose_sources(
            reader, prefix, self._network, averages=self._config.init_averages
        )
        saved = reader.get_variable_to_shape_map()
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
        return _Plan(loaded, fresh)

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

    def _describe(self, plan: "_Plan", saved: Sequence[str]) -> list[str]:
        """Returns a line each about what is loaded, what is not, and what nobody takes."""
        names = [variable.op.name for variable in self._network]
        loaded = [variable.op.name for variable, _ in plan.loaded]
        fresh = [variable.op.name for variable in plan.fresh]
        taken = {source for _, source in plan.loaded}
        # Slots and averages have names within their variables': hundreds, which say nothing new.
        others = [name for name in saved if name.rpartition("/")[0] not in saved]
        left = sorted(name for name in others if name not in taken)
        extra = sum(name not in taken for name in saved) - len(left)
        lines = [_line("loaded", loaded, names)]
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


class _Plan(NamedTuple):
    """What becomes of a network's variables.

    Attributes:
      loaded: variables that are loaded, with the names that they have in the checkpoint.
      fresh: variables that stay as initialized.
    """

    loaded: list[tuple[tf.Variable, str]]
    fresh: list[tf.Variable]


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
