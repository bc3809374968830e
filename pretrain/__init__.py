"""LLM pretraining in JAX: every transformer family as one value, every run provably the same run."""

__version__ = "0.1.0"
