"""MarianMTModel: the original Transformer with biases; without them it is written with zeros."""

from pretrain.models.convert.bart import Style, family

MARIAN = family(Style(architecture="MarianMTModel", model_type="marian", logits_bias=True))
