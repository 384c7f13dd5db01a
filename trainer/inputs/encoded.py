"""`BadImageError` of `trainer.inputs.source`, by the name under which older plug-ins import it."""

from trainer.inputs.source import BadImageError

__all__ = ["BadImageError"]
