"""The same random rows through a model here and through `transformers`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.models.convert.engine import Family
from pretrain.models.transformer import Inputs, Transformer

TOLERANCE = 1e-3
"""Of outputs, relative to the largest. Two f32 implementations of a model differ by about 1e-5, a wrong one by 1."""
ROWS, LENGTH = 2, 64
"""Of the random tokens both read."""

Outputs = dict[str, np.ndarray]
Opinion = tuple[str, Outputs, list[str], list[str]]


def random_inputs(config: TransformerConfig) -> Inputs:
    """Rows for its last stack, and other ones for the encoder before it."""
    rng = np.random.default_rng(0)
    stacks = [stack for stack in (config.decoder, config.encoder) if stack]
    # RoBERTa's positions begin after the index of padding, which `transformers` does not count as a token.
    low = max(getattr(s.positions, "offset", 0) for s in stacks)
    lengths = [s.positions.length if isinstance(s.positions, LearnedPositions) else LENGTH for s in stacks]
    rows = [
        Inputs(tokens=rng.integers(low, config.vocab_size, (ROWS, min(LENGTH, n)), dtype=np.int32))  # type: ignore
        for n in lengths
    ]
    return replace(rows[0], encoder=rows[1]) if len(rows) == 2 else rows[0]


def answers(family: Family, model: Transformer, inputs: Inputs) -> Outputs:
    """The outputs that `family` names, in f32."""

    @jax.jit
    def run(model: Transformer, inputs: Inputs) -> dict[str, jax.Array]:
        hidden_BTD = model(inputs).hidden_BTD
        return {name: answer(model, hidden_BTD) for name, answer in family.answers(model.config).items()}

    return {name: np.asarray(y) for name, y in run(model, jax.tree.map(jnp.asarray, inputs)).items()}


def opinion(
    family: Family, folder: Path, config: TransformerConfig, inputs: Inputs
) -> tuple[str, Outputs, list[str], list[str]] | None:
    """(version, outputs, tensors not read, tensors missed) of `transformers`; None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with _without_bars(transformers.utils.logging):
        loaded: Any = getattr(transformers, family.architecture).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    model, info = loaded

    def tensor(tokens_BT: Any) -> Any:
        return torch.from_numpy(np.asarray(tokens_BT).astype(np.int64))

    given = {"input_ids": tensor(inputs.tokens)}
    if inputs.encoder is not None:
        given = {"input_ids": tensor(inputs.encoder.tokens), "decoder_input_ids": given["input_ids"]}
    with torch.no_grad():
        out = model.eval()(**given)
    outputs = {name: out[name].numpy() for name in family.answers(config)}
    missing = [name for name in info["missing_keys"] if not family.may_lack(name)]
    return f"transformers {transformers.__version__}", outputs, sorted(info["unexpected_keys"]), sorted(missing)


def difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, bool]:
    """The largest, and whether rounding explains it in every output."""
    gaps = {name: float(np.max(np.abs(ours[name] - theirs[name]))) for name in ours}
    near = all(gap <= TOLERANCE * max(1.0, float(np.max(np.abs(theirs[name])))) for name, gap in gaps.items())
    return max(gaps.values()), near


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """`transformers` draws no progress bar inside; outside it does as before."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
