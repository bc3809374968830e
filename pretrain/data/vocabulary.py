"""What a token says of the text around it, as a table over the vocabulary, and special tokens by name."""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from pretrain.data.config import ROLES
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import UserError

SPECIAL, OPENS, SPACED, CLOSES, STOPS, BREAKS = (1 << i for i in range(6))
_STOP = re.compile(r"""[.!?…]["'”’»)\]]*\s*$""")
_BREAK = re.compile(r"""\n[^\S\n]*$|[。！？]["'”’」』»)\]]*\s*$""")


def special(tokenizer: Tokenizer, name: str, field: str) -> int:
    """Id of a special token; bos, eos and pad mean the one that the tokenizer uses as such.

    Raises UserError naming the token and the field of the config that asks for it.
    """
    i = getattr(tokenizer, name) if name in ROLES else tokenizer.specials.get(name)
    if i is None:
        known = [n for n in ROLES if getattr(tokenizer, n) is not None] + list(tokenizer.specials)[:20]
        raise UserError(
            f"{field}: found no special token {name!r} in the tokenizer, expected it; name one of {', '.join(known)}, "
            "or prepare the corpus with a tokenizer that has it"
        )
    return i


@dataclass(frozen=True)
class Vocabulary:
    flags: np.ndarray
    """uint8 [V]."""
    ordinary: np.ndarray
    """int32, the ids that text may hold."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        flags = np.array([_flags(tokenizer.bytes_of([i])) for i in range(tokenizer.vocab_size)], np.uint8)
        flags[list(tokenizer.specials.values())] = SPECIAL
        if tokenizer.unk is not None:
            flags[tokenizer.unk] = OPENS | CLOSES | SPACED
        return cls(flags, np.flatnonzero(flags != SPECIAL).astype(np.int32))

    def is_special(self, tokens: np.ndarray) -> np.ndarray:
        return (self.flags[tokens] & SPECIAL) != 0

    def words(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Where a word begins, bool [B, T]: at a space, a mark, an ideograph or what follows one, and at `starts`."""
        flags = self.flags[tokens]
        begins = starts | ((flags & (OPENS | SPECIAL)) != 0)
        begins[:, 1:] |= (flags[:, :-1] & (CLOSES | SPECIAL)) != 0
        begins[:, :1] = True
        return begins

    def sentences(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Where a sentence begins, bool [B, T]: after a line break or a full stop and a space, and at `starts`."""
        flags = self.flags[tokens]
        begins = starts.copy()
        after_stop = ((flags[:, :-1] & STOPS) != 0) & ((flags[:, 1:] & SPACED) != 0)
        begins[:, 1:] |= after_stop | ((flags[:, :-1] & BREAKS) != 0)
        begins[:, :1] = True
        return begins


def _flags(data: bytes) -> int:
    """Of a token's text; a part of a character says nothing."""
    text = data.decode("utf-8", "ignore")
    if not text:
        return 0
    first, last = text[0], text[-1]
    flags = OPENS * (not _joins(first)) | CLOSES * (
        not _joins(last) and text != " "
    )  # a lone space is of the next word
    flags |= SPACED * (first.isspace() or _ideograph(first)) | STOPS * bool(_STOP.search(text))
    return flags | BREAKS * bool(_BREAK.search(text))


def _joins(character: str) -> bool:
    """Whether a word goes on through it."""
    return (character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")) and not _ideograph(character)


def _ideograph(character: str) -> bool:
    """CJK ideographs, which no space divides, as BERT's tokenizer divides them; kana join."""
    return "\u3400" <= character <= "\u4dbf" or "\u4e00" <= character <= "\u9fff" or character >= "\U00020000"
