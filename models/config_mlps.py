"""What works on one token at a time, as values. Import them from `pretrain.models.config`."""

from dataclasses import dataclass
from typing import Literal

from pretrain.models.config_mixers import Checks

Activation = Literal["gelu", "gelu_tanh", "gelu_quick", "silu", "relu", "relu2", "tanh"]


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Two matrices around an activation, or three with a gate (GLU variants, Shazeer 2020)."""

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    """Bounds the gate from above and its partner on both sides (gpt-oss: 7)."""
    up_offset: float = 0.0
    """Added to the gate's partner (gpt-oss: 1)."""

    def checks(self) -> Checks:
        return (
            (self.d_ff > 0, f"d_ff={self.d_ff}: expected a positive width; 4 * d_model is usual without a gate"),
            (
                self.gated or (self.clamp is None and self.up_offset == 0),
                "clamp and up_offset belong to a gate; set gated=True or leave them out",
            ),
            (self.clamp is None or self.clamp > 0, f"clamp={self.clamp}: expected a positive bound, or None"),
        )


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Which experts a token visits, and what their answers weigh."""

    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    """The weights of the chosen experts sum to 1."""
    scale: float = 1.0
    """Multiplies the weights."""
    bias: bool = False
    groups: int = 1
    """Experts stand in so many groups; only `top_groups` of them are looked at (DeepSeek-V2, section 2.2.2)."""
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    """A group is as good as its best expert (V2), or as the sum of its two best (V3)."""
    on_input: bool = False
    """The weight multiplies what an expert reads, not what it says (Llama 4)."""
    balance_rate: float | None = None
    """A bias of the choice alone moves by so much against the load after every step (Wang et al. 2024,
    arXiv:2408.15664; 0.001); None: there is none."""
    balance_loss: float = 0.0
    """Weight of experts * sum(load share * mean score) (Fedus et al. 2022, equation 4); 0.01 is usual."""
    z_loss: float = 0.0
    """Weight of the mean squared log of the router's denominator (Zoph et al. 2022, equation 5); 1e-3 is usual."""

    def checks(self) -> Checks:
        return (
            (self.top_k > 0, f"top_k={self.top_k}: expected at least 1 expert a token"),
            (
                0 < self.top_groups <= self.groups,
                f"top_groups={self.top_groups}: expected 1 to groups={self.groups}",
            ),
            (
                self.balance_rate is None or self.balance_rate >= 0,
                f"balance_rate={self.balance_rate}: expected 0 or more, or None; 0.001 is usual",
            ),
            (self.balance_loss >= 0, f"balance_loss={self.balance_loss}: expected 0 or more; 0.01 is usual"),
            (self.z_loss >= 0, f"z_loss={self.z_loss}: expected 0 or more; 1e-3 is usual"),
        )


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """A mixture of experts (Shazeer et al. 2017): each token visits `router.top_k` of many MLPs."""

    experts: int
    router: RouterConfig
    expert: MlpConfig
    shared: MlpConfig | None = None
    """An MLP that every token visits."""
    capacity: float | None = None
    """Tokens of a row an expert takes, as a multiple of the fair share; later ones pass by it. None: no token is
    dropped."""

    def checks(self) -> Checks:
        groups = max(self.router.groups, 1)
        reachable = self.experts // groups * self.router.top_groups
        return (
            (self.experts > 0, f"experts={self.experts}: expected at least 1"),
            (
                self.experts % groups == 0,
                f"router.groups={groups} does not divide experts={self.experts}; choose a divisor",
            ),
            (
                self.router.top_k <= reachable,
                f"router.top_k={self.router.top_k}: expected at most {reachable}, the experts that can be reached",
            ),
            (self.capacity is None or self.capacity > 0, f"capacity={self.capacity}: expected more than 0, or None"),
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A trainable low-rank difference to every matrix whose name matches (Hu et al. 2021)."""

    pattern: str
    """A regular expression found in the name, as `mixer/(query|value)$`."""
    rank: int = 8
    alpha: float = 16.0
    """The difference is multiplied by alpha / rank."""
    dora: bool = False
    """The norm of each output's weights is learned apart from their direction (Liu et al. 2024, arXiv:2402.09353)."""

    def checks(self) -> Checks:
        return ((self.rank > 0, f"rank={self.rank}: expected a positive number; 8 is usual"),)
