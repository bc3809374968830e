"""How the next token is chosen, as a value. Nothing here imports jax."""

from dataclasses import dataclass

from pretrain.models.config import Checks


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Each filter keeps the tokens it names among those the filters before it kept, in the order of the fields."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities reach top_p: the nucleus (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Keep tokens at least min_p times as probable as the most probable one (Nguyen et al. 2024)."""

    def checks(self) -> Checks:
        return (
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
        )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)
