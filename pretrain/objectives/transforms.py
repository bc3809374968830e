"""The host's half of an objective."""

from pretrain.data.pack import Packed
from pretrain.data.rows import Transform
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config import NextToken, Objective


def transform(config: Objective, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    """Rows of at most `length` tokens for the stacks of the model.

    Raises UserError naming the special tokens that the tokenizer does not have.
    """
    assert isinstance(config, NextToken)
    return Packed(length)
