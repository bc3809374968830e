"""Models of `transformers`, read and written without it."""

from pretrain.models.convert.folder import load, parts, save

__all__ = ["load", "parts", "save"]
