"""BLEU of what a model writes for sources of the validation split (Papineni et al. 2002), as sacrebleu counts it."""

from itertools import islice
from typing import Any

import jax
import numpy as np

from pretrain.config import RunConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.vocabulary import special
from pretrain.data.windows import Split
from pretrain.errors import UserError
from pretrain.models.generate.beam import beam_search
from pretrain.models.generate.config import GREEDY, BeamSearch
from pretrain.models.generate.decode import generate
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import SequencePairs


class Translator:
    """Translates the same pairs each time: the first ones of the split that a row has room for."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, split: Split, pairs: int):
        self.tokenizer, self.model, self.rows = tokenizer, config.model, config.batch.rows
        objective, self._metric = config.objective, _metric()
        if not isinstance(objective, SequencePairs):
            raise UserError("translations: found a run of another objective, expected SequencePairs; leave them out")
        self.both = self.model.encoder is not None
        self.bidirectional, self.start = objective.bidirectional, objective.start
        written, read = objective.lengths(config.data.sequence_length, self.model)
        self.longest = written
        self.pairs = list(islice(_pairs(split, read or written, written, joined=not self.both), pairs))

    @classmethod
    def of(cls, config: RunConfig, tokenizer: Tokenizer, split: Split) -> "Translator | None":
        """As the run says."""
        pairs = config.evals.translations
        return cls(config, tokenizer, split, pairs) if pairs else None

    def __call__(self, model: Transformer, search: BeamSearch | None = None) -> dict[str, float]:
        """`search`: None takes the most probable token each time. {"bleu": 0 to 100, "translated": pairs}"""
        decode = self.tokenizer.decode
        said = [decode(tokens) for tokens in self._written(model, search)]
        meant = [decode(target.tolist()) for _, target in self.pairs]
        return {"bleu": self._metric.corpus_score(said, [meant]).score, "translated": len(said)}

    @property
    def signature(self) -> str:
        """How it was counted, to be stated beside the number (Post 2018)."""
        return str(self._metric.get_signature())

    def _written(self, model: Transformer, search: BeamSearch | None) -> list[list[int]]:
        eos, out = self.tokenizer.eos, []
        for at in range(0, len(self.pairs), self.rows):
            sources = [source.tolist() for source, _ in self.pairs[at : at + self.rows]]
            most = self.longest if self.both else self.longest - max(map(len, sources))
            options: dict[str, Any] = {"max_tokens": most, "stop_tokens": () if eos is None else (eos,)}
            options |= {"sampling": GREEDY, "prefix": self.bidirectional}
            prompts = sources
            if self.both:
                first = special(self.tokenizer, self.start, "objective.start")
                prompts, options["sources"] = [[first]] * len(sources), sources
            if search is None:
                out += generate(model, prompts, key=jax.random.key(0), **options).tokens
            else:
                out += [best for best, *_ in beam_search(model, prompts, search, **options).tokens]
        return out


def _metric():
    try:
        from sacrebleu.metrics import BLEU  # type: ignore
    except ModuleNotFoundError:
        raise UserError("found no sacrebleu, expected it for BLEU; pip install 'pretrain[bleu]'") from None
    return BLEU()


def _pairs(split: Split, read: int, written: int, *, joined: bool):
    """(tokens of a source, tokens of its target) as they stand in the stream, those that fit."""
    position, lengths = 0, split.document_lengths().tolist()
    for n, m in zip(lengths[::2], lengths[1::2]):
        if n < written and n + m <= written if joined else n <= read and m <= written:
            tokens = np.zeros(n + m + 1, np.int32)
            split.fill(position, tokens, np.zeros(n + m + 1, bool))
            yield tokens[:n], tokens[n : n + m]
        position += n + m
