"""Options of the verbs that write: how the next token is chosen, and where a text ends."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from pretrain.errors import UserError
from pretrain.models.generate.config import Sampling


@dataclass(frozen=True, kw_only=True)
class Choice:
    max_tokens: int = 64
    """At most; an end-of-text token ends it sooner."""
    min_tokens: int = 0
    """No end-of-text token before so many others."""
    stop: tuple[str, ...] = ()
    """Texts that end it; what is written goes up to the first of them."""
    temperature: float = 0.8
    """0 takes the most probable token."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the fewest tokens that are together this probable."""
    min_p: float | None = None
    """Only tokens at least this times as probable as the most probable one."""
    typical_p: float | None = None
    """Only the fewest tokens, those of usual surprise first, that are together this probable."""
    repetition_penalty: float = 1.0
    """Divides what speaks for tokens that came before, in the prompt too; 1.2 is usual."""
    presence_penalty: float = 0.0
    """Taken from the logit of tokens that were written before."""
    frequency_penalty: float = 0.0
    """The same once for each time."""
    no_repeat_ngram: int | None = None
    """No so many tokens twice in the same order."""
    seed: int = 0

    def sampling(self) -> Sampling:
        """Raises UserError with every option out of range."""
        mine = {f.name for f in fields(Sampling)} & {f.name for f in fields(self)}
        sampling = Sampling(**{name: getattr(self, name) for name in sorted(mine - {"first_token"})})
        problems = [message for holds, message in sampling.checks() if not holds]
        if self.max_tokens < 1:
            problems.append(f"max_tokens={self.max_tokens}: expected at least 1")
        if self.seed < 0:
            problems.append(f"seed={self.seed}: expected 0 or more")
        if not all(self.stop):
            problems.append("stop: found an empty text, expected at least one character; leave it out")
        if problems:
            raise UserError(*problems)
        return sampling


def end(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of these stands in a text."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places) if places else None


def cut(tokens: list[int], stops: Sequence[str], decode) -> tuple[str, int]:
    """(the text before the first stop, how many tokens it took to write it and the stop)."""
    text = decode(tokens)
    place = end(text, stops)
    if place is None:
        return text, len(tokens)
    count = next(n for n in range(1, len(tokens) + 1) if end(decode(tokens[:n]), stops) is not None)
    return text[:place], count
