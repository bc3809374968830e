"""Loss, perplexity and bits per byte on the validation split."""

import math
from typing import Any

import jax

from pretrain.config import RunConfig
from pretrain.data.pipeline import validation_batches
from pretrain.data.windows import Split
from pretrain.errors import UserError
from pretrain.feed import Feed
from pretrain.models.transformer import Transformer
from pretrain.objectives import Objective


class Evaluator:
    """Looks at the same batches of the validation split each time."""

    def __init__(self, config: RunConfig, objective: Objective, split: Split, feed: Feed):
        self.config, self.split, self.feed = config, split, feed
        self._sums = jax.jit(lambda model, batch: objective(model, batch, None))
        if not split.tokens:
            raise UserError(
                f"found no document in the validation split of {split.folder}, expected some; "
                "raise data.corpus.validation_fraction or prepare more text"
            )

    def __call__(self, model: Transformer, batches: int | None = None) -> dict[str, Any]:
        """`batches`: how many; None: as the config says."""
        limit = self.config.evals.batches if batches is None else batches
        rows, total, weight = self.config.batch.rows, 0.0, 0.0
        for batch in validation_batches(self.split, self.config.data.sequence_length, rows, limit):
            mine = {name: array[self.feed.rows] for name, array in batch.items()}
            sums = self._sums(model, self.feed.on_device(mine))
            total, weight = total + float(sums.total), weight + float(sums.weight)
        return summary(total / max(weight, 1), weight, self.split.bytes_per_token)


def summary(loss: float, tokens: float, bytes_per_token: float) -> dict[str, Any]:
    """Bits per byte take the split's text bytes a token: comparable between tokenizers (Gao et al. 2020)."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "tokens": round(tokens),
    }
