"""The parts of a network that a run trains, and those that stay: --trainable_scopes and so on."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow.compat.v1 as tf1

from trainer.config import FineTuningConfig
from trainer.config.fine_tuning import Scopes
from trainer.errors import ConfigError
from trainer.graph.moving_statistics import VARIANCE

_SHOWN = 6


class Selection:
    """The parts of the network in the default graph that a run trains."""

    def __init__(self, config: FineTuningConfig) -> None:
        self._scopes = None if config.trainable_scopes is None else Scopes(config.trainable_scopes)
        self._freezes_batch_norm = config.freeze_batch_norm

    def is_frozen_norm(self, scope: str) -> bool:
        """Returns whether a layer of BN is left as it was: its statistics, its scale and offset.

        Args:
          scope: name of the layer's variable scope.
        """
        if self._scopes is None:
            return self._freezes_batch_norm
        is_trained = any(self._scopes.match(f"{scope}/{name}") for name in ("gamma", "beta"))
        return self._freezes_batch_norm and not is_trained

    def freezes_all(self, names: Sequence[str]) -> bool:
        """Returns whether all layers of BN among the variables of some names are left so."""
        norms = [name.rpartition("/")[0] for name in names if name.endswith(VARIANCE)]
        return all(self.is_frozen_norm(scope) for scope in norms)

    def count_norms(self) -> int:
        """Returns the number of layers of BN that use the batch's statistics."""
        return sum(not self.is_frozen_norm(scope) for scope in _norm_scopes())

    def trained_variables(self) -> list[tf.Variable]:
        """Returns the variables that are trained.

        Raises:
          ConfigError: a scope is none of the network's, or nothing is left to train.
        """
        variables = tf1.trainable_variables()
        norms = {scope for scope in _norm_scopes() if self.is_frozen_norm(scope)}
        if self._scopes is not None:
            names = [variable.op.name for variable in variables]
            unused = self._scopes.list_unused(names)
            if unused:
                raise ConfigError(
                    f"--trainable_scopes: {unused[0]!r} must be a scope of the network's trainable "
                    f"variables, which are in {_list_scopes(names)}"
                )
        trained = [
            variable
            for variable in variables
            if (self._scopes is None or self._scopes.match(variable.op.name))
            and variable.op.name.rpartition("/")[0] not in norms
        ]
        if variables and not trained:
            raise ConfigError(
                "--freeze_batch_norm: must leave something to train, but all variables are BN's"
            )
        return trained

    def moving_variables(self) -> list[tf.Variable]:
        """Returns BN's moving statistics, and other variables of layers, that steps change.

        Raises:
          ConfigError: a layer of BN is to be left as it was, and is not one of slim's fused ones.
        """
        trainable = {variable.ref() for variable in tf1.trainable_variables()}
        moving = [
            variable
            for variable in tf1.get_collection(tf1.GraphKeys.MODEL_VARIABLES)
            if variable.ref() not in trainable
        ]
        frozen = [v.op.name for v in moving if self.is_frozen_norm(v.op.name.rpartition("/")[0])]
        updated = {
            source.op.name
            for update in tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)
            for source in getattr(update, "op", update).inputs
        }
        wrong = sorted(updated.intersection(frozen))
        if wrong:
            raise ConfigError(
                f"--freeze_batch_norm: must find slim's fused BN in the network, but {wrong[0]} is "
                "updated by another kind of layer"
            )
        return [variable for variable in moving if variable.op.name not in frozen]


def _norm_scopes() -> set[str]:
    """Returns the scopes of all layers that have moving statistics."""
    return {
        variable.op.name.rpartition("/")[0]
        for variable in tf1.get_collection(tf1.GraphKeys.MODEL_VARIABLES)
        if variable.op.name.endswith(VARIANCE)
    }


def _list_scopes(names: Sequence[str]) -> str:
    """Returns the outermost scopes that tell the variables apart, as one phrase."""
    scopes = list(names)  # Those of variables outside all scopes.
    for depth in range(1, 1 + max((name.count("/") for name in names), default=0)):
        scopes = list(dict.fromkeys("/".join(name.split("/")[:depth]) for name in names))
        if len(scopes) > 1:
            break
    more = f" and {len(scopes) - _SHOWN} more" if len(scopes) > _SHOWN else ""
    return f"{', '.join(scopes[:_SHOWN])}{more}"
