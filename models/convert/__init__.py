"""Models of `transformers`, read and written without it."""

from pretrain.models.convert.folder import load, save

__all__ = ["load", "save"]
