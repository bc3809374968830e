"""Loss, perplexity and bits per byte on the validation split."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding

from pretrain.config import RunConfig
from pretrain.data.corpus import corpus_folder
from pretrain.data.pipeline import validation_batches
from pretrain.data.rows import Transform
from pretrain.data.windows import Split
from pretrain.errors import UserError
from pretrain.evaluate.bleu import Translator
from pretrain.feed import Feed
from pretrain.models.generate.config import BeamSearch
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Objective
from pretrain.objectives.build import build
from pretrain.objectives.config import NextToken
from pretrain.objectives.config import Objective as ObjectiveConfig
from pretrain.objectives.transforms import rows_of
from pretrain.opened import OpenRun
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS

Batches = int | Literal["all"]
"""So many from the beginning of the split, or all of it."""


class Evaluator:
    """Looks at the same batches of the validation split each time."""

    def __init__(self, config: RunConfig, objective: Objective, rows: Transform, split: Split, feed: Feed):
        self.config, self.transform, self.split, self.feed = config, rows, split, feed
        self._sums = jax.jit(lambda model, batch: objective(model, batch, None))
        if not split.tokens:
            raise UserError(
                f"found no document in the validation split of {split.folder}, expected some; "
                "raise data.corpus.validation_fraction or prepare more text"
            )

    def __call__(self, model: Transformer, batches: Batches | None = None) -> dict[str, Any]:
        """`batches`: None is as many as the config says."""
        limit = None if batches == "all" else batches or self.config.evals.batches
        rows, total, weight, metrics = self.config.batch.rows, 0.0, 0.0, Counter()
        for batch in validation_batches(self.split, self.transform, rows, limit):
            mine = {name: array[self.feed.rows] for name, array in batch.items()}
            sums = self._sums(model, self.feed.on_device(mine))
            total, weight = total + float(sums.total), weight + float(sums.weight)
            metrics.update({name: float(value) for name, value in sums.metrics.items()})
        means = {name: value / max(weight, 1) for name, value in metrics.items()}
        return summary(self.config.objective, total / max(weight, 1), means, weight, self.split.bytes_per_token)


def summary(
    objective: ObjectiveConfig, loss: float, metrics: dict[str, float], tokens: float, bytes_per_token: float
) -> dict[str, Any]:
    """`tokens` were asked for. The parts of its loss, for an objective that asks for more than the next token."""
    if not isinstance(objective, NextToken):
        return {"loss": loss, **metrics, "tokens": round(tokens)}
    nll = metrics.get("nll", loss)  # of the next token alone, without z-loss, mixtures' losses and tokens further ahead
    bits = bits_per_byte(objective, nll, bytes_per_token)
    return {"loss": loss, "perplexity": math.exp(min(nll, 700)), **bits, "tokens": round(tokens)}


def bits_per_byte(objective: ObjectiveConfig, loss: float, bytes_per_token: float) -> dict[str, float]:
    """Of losses of every token of a text, by the split's text bytes a token: comparable between tokenizers (Gao et al.
    2020)."""
    return {"bits_per_byte": loss / math.log(2) / bytes_per_token} if isinstance(objective, NextToken) else {}


def evaluate(
    opened: OpenRun,
    *,
    batches: Batches | None = None,
    translations: int | None = None,
    search: BeamSearch | None = None,
) -> dict[str, Any]:
    """A run's newest loss on its own validation split, on this machine's first device. `batches`: as of `Evaluator`.

    `translations`: so many pairs are translated for BLEU, with beams where there is a search; None: as the run says.
    """
    if opened.config is None:
        raise UserError(
            f"{opened.path}: a Hugging Face folder has no validation split; evaluate a run that starts from it"
        )
    pairs = opened.config.evals.translations if translations is None else translations
    if search is not None and not pairs:
        raise UserError("beams: found no translations to search for, expected some; add --translations N")
    config = replace(opened.config, mesh=MeshConfig(data=1, fsdp=1), rules="dp")
    mesh = meshes.build(config.mesh, jax.devices()[:1])
    with place.use(mesh, PRESETS["dp"]()):
        split = Split(corpus_folder(config.data, opened.path / "data"), "validation")
        assert opened.tokenizer is not None
        rows = rows_of(config, opened.tokenizer)
        evaluator = Evaluator(config, build(config.objective), rows, split, Feed(mesh, config.batch.rows))
        model = jax.device_put(opened.model, NamedSharding(mesh, jax.P()))
        facts = {"step": opened.step, **evaluator(model, batches)}
        if pairs:
            translator = Translator(config, opened.tokenizer, split, pairs)
            facts |= {**translator(model, search), "bleu_signature": translator.signature}
        return facts
