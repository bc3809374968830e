"""Texts as a model reads them: framed as in its run's training, or as its Hugging Face folder says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain import untrusted
from pretrain.config import RunConfig
from pretrain.data.config import ROLES
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.vocabulary import special
from pretrain.errors import UserError
from pretrain.models.config import TransformerConfig
from pretrain.models.convert import safetensors
from pretrain.objectives.config import MaskedLm, Objective, PrefixLm, ReplacedToken, SequencePairs, SpanCorruption, Ul2

if TYPE_CHECKING:
    from pretrain.opened import OpenRun

MASKS = ("[MASK]", "<mask>")
"""What the tokenizers of published encoders call their mask."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    tokenizer: Tokenizer
    model: TransformerConfig
    objective: Objective | None
    """Of the run; None: a Hugging Face folder."""
    add_bos: bool
    add_eos: bool
    marks: tuple[str, ...]
    """Special tokens that a text may spell."""
    start: int | None
    """The first token of a decoder beside an encoder, where a folder says it."""

    @classmethod
    def of_run(cls, config: RunConfig, tokenizer: Tokenizer) -> "Reader":
        objective, corpus = config.objective, config.data.corpus
        names = objective.tokens(config.data.sequence_length, config.model)
        return cls(
            tokenizer=tokenizer,
            model=config.model,
            objective=objective,
            add_bos=corpus.add_bos,
            add_eos=corpus.add_eos or isinstance(objective, SpanCorruption | Ul2 | SequencePairs),
            marks=tuple(name for name in names if name not in ROLES),
            start=None,
        )

    @classmethod
    def of(cls, opened: "OpenRun") -> "Reader":
        """Raises UserError where there is no tokenizer."""
        tokenizer, model = opened.tokenizer, opened.model.config
        if tokenizer is None:
            raise UserError(
                f"{opened.path}: found no tokenizer, expected tokenizer.json or tokenizer.model; copy it there"
            )
        if opened.config is not None:
            return cls.of_run(opened.config, tokenizer)
        roles = {getattr(tokenizer, role) for role in ROLES}
        marks = tuple(name for name, i in tokenizer.specials.items() if i not in roles)
        return cls(
            tokenizer=tokenizer,
            model=model,
            objective=None,
            add_bos=opened.add_bos,
            add_eos=True,
            marks=marks if model.encoder is not None else (),
            start=_start(opened.path) if model.encoder is not None and model.decoder is not None else None,
        )

    @property
    def reads(self) -> bool:
        """Whether there is a text to read beside the one to write."""
        if self.model.decoder is None:
            return False
        return self.model.encoder is not None or isinstance(self.objective, SpanCorruption | Ul2 | SequencePairs)

    @property
    def prefix(self) -> bool:
        """Whether the tokens of a prompt see each other."""
        if self.model.decoder is None or self.model.encoder is not None:
            return False
        pairs = isinstance(self.objective, SequencePairs) and self.objective.bidirectional
        return pairs or isinstance(self.objective, PrefixLm | SpanCorruption | Ul2)

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that a decoder goes on with, as a document begins in training."""
        bos = self.tokenizer.bos if self.add_bos else None
        return ([] if bos is None else [bos]) + self._ids(text)

    def source(self, text: str) -> list[int]:
        """Ids of a text that is read."""
        eos = self.tokenizer.eos if self.add_eos else None
        return self.prompt(text) + ([] if eos is None else [eos])

    def opening(self, text: str) -> list[int]:
        """Ids of the beginning of what is written beside an encoder. Raises UserError where nothing says how."""
        start = getattr(self.objective, "start", None)
        first = self.start if start is None else special(self.tokenizer, start, "objective.start")
        if first is None:
            raise UserError(
                "config.json: found no decoder_start_token_id, expected the decoder's first token; add it there"
            )
        return [first, *(self._ids(text) if text else [])]

    @property
    def mask(self) -> str:
        """How a text spells the mask. Raises UserError where the tokenizer has none."""
        if isinstance(self.objective, MaskedLm | ReplacedToken):
            return self.objective.masking.mask
        name = next((name for name in MASKS if name in self.tokenizer.specials), None)
        if name is None:
            raise UserError(f"found a tokenizer without a mask, expected {' or '.join(MASKS)}; use another model")
        return name

    def masked(self, text: str) -> tuple[list[int], int]:
        """(ids, id of the mask) of a text that an encoder reads. Raises UserError for one without a mask."""
        if self.mask not in text:
            raise UserError(
                f"found no {self.mask} in the text, expected one or more; write it where a token is missing"
            )
        mask, sentences = special(self.tokenizer, self.mask, "mask"), getattr(self.objective, "sentences", None)
        if sentences is None:
            return self.source(text), mask
        cls, sep = (special(self.tokenizer, token, "objective.sentences") for token in (sentences.cls, sentences.sep))
        return [cls, *self._ids(text), sep], mask

    def special(self, name: str, option: str) -> int:
        """Id of a special token by its name, or of any token by its number."""
        return int(name) if name.isdecimal() else special(self.tokenizer, name, option)

    def _ids(self, text: str) -> list[int]:
        """Ids of a text in which special tokens may be spelled; spaces before one belong to it."""
        if not self.marks:
            return self.tokenizer.encode(text)
        ids = []
        for part in _split(text, self.marks):
            if part in self.marks:
                ids.append(special(self.tokenizer, part, "text"))
            elif part:
                ids += self.tokenizer.encode(part)
        return ids


def _split(text: str, marks: Iterable[str]) -> list[str]:
    longest_first = sorted(marks, key=len, reverse=True)
    return re.split(rf"\s*({'|'.join(map(re.escape, longest_first))})", text)


def _start(folder) -> int | None:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            start = safetensors.read_json(untrusted.inside(folder, name)).get("decoder_start_token_id")
            if start is not None and type(start) is not int:
                raise UserError(f"{folder / name}: decoder_start_token_id is {repr(start)[:40]}, expected a token's id")
            if start is not None:
                return start
    return None
