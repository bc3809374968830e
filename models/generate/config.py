"""How the next token is chosen, as a value. Nothing here imports jax."""

from dataclasses import dataclass
from typing import Literal

from pretrain.models.config import Checks


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is done to the logits, in the order of the fields. Each filter keeps the tokens it names among those the
    filters before it kept."""

    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of all tokens before, the prompt's too (Keskar et al. 2019)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it came since the prompt."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens that came since the prompt."""
    no_repeat_ngram: int | None = None
    """No so many tokens come twice in the same order, prompt included (Paulus et al. 2018)."""
    min_tokens: int = 0
    """No stop token before so many others."""
    first_token: int | None = None
    """What comes first, whatever the model says (mBART: the language to translate to)."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities reach top_p: the nucleus (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Keep tokens at least min_p times as probable as the most probable one (Nguyen et al. 2024)."""
    typical_p: float | None = None
    """Keep the fewest tokens whose probabilities reach typical_p, those with a surprise nearest to the mean first
    (Meister et al. 2023)."""

    def checks(self) -> Checks:
        return (
            (
                self.repetition_penalty > 0,
                f"repetition_penalty={self.repetition_penalty}: expected more than 0; 1.2 is usual, 1 is none",
            ),
            (
                self.no_repeat_ngram is None or self.no_repeat_ngram > 0,
                f"no_repeat_ngram={self.no_repeat_ngram}: expected at least 1; 3 is usual, None allows all",
            ),
            (self.min_tokens >= 0, f"min_tokens={self.min_tokens}: expected 0 or more; 0 stops at any stop token"),
            (
                self.first_token is None or self.first_token >= 0,
                f"first_token={self.first_token}: expected a token id; None leaves it to the model",
            ),
            (self.temperature >= 0, f"temperature={self.temperature}: expected 0 (greedy) or more; 1 is usual"),
            (self.top_k is None or self.top_k > 0, f"top_k={self.top_k}: expected at least 1; None keeps all tokens"),
            (
                self.top_p is None or 0 < self.top_p <= 1,
                f"top_p={self.top_p}: expected a probability above 0, at most 1; 0.95 is usual, None keeps all tokens",
            ),
            (
                self.min_p is None or 0 <= self.min_p <= 1,
                f"min_p={self.min_p}: expected a probability; 0.05 to 0.1 is usual, None keeps all tokens",
            ),
            (
                self.typical_p is None or 0 < self.typical_p <= 1,
                f"typical_p={self.typical_p}: expected a probability above 0, at most 1; 0.95 is usual, "
                "None keeps all tokens",
            ),
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Several continuations side by side; the most probable ones go on (as in `transformers`)."""

    beams: int = 4
    length_penalty: float = 1.0
    """A finished continuation scores sum(logprobs) / tokens ** length_penalty: more is for longer ones."""
    until: Literal["enough", "likely", "sure"] = "likely"
    """When a prompt is done. enough: as many continuations finished as there are beams; likely: and none that goes on
    would be better, were it to end now; sure: and none can become better."""

    def checks(self) -> Checks:
        return ((self.beams > 0, f"beams={self.beams}: expected at least 1; 4 is usual"),)
