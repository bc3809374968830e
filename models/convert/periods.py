"""Layers that config.json lists one by one, as a stack whose repeated part is compiled once."""

from collections.abc import Callable, Sequence

from pretrain.models.config import AttentionConfig, BlockConfig, NormConfig, StackConfig, TransformerConfig
from pretrain.models.convert.fields import Fields

LAYERS = 1000
"""At most: several times the deepest model published, and few enough to list."""
SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"


def bounded(fields: Fields, layers: int | None) -> int:
    """A number of layers that may be listed; 1 after a problem."""
    if layers is not None and layers > LAYERS:
        fields.problems.append(f"{fields.where}: found {layers} layers, expected at most {LAYERS}; correct it")
        return 1
    return layers or 1


def kinds(
    fields: Fields, layers: int | None, default: Callable[[int], str], allowed: Sequence[str] = (SLIDING, FULL)
) -> list[str]:
    """`layer_types`: the kind of attention of each layer; `default` of its number where nothing is said."""
    usual = [default(i) for i in range(bounded(fields, layers))]
    found = fields.take("layer_types", list, usual)
    if found is not usual and layers and len(found) != layers:
        fields.problems.append(f"{fields.where}: layer_types names {len(found)} layers, expected {layers}; correct one")
    if strange := [kind for kind in found if kind not in allowed]:
        fields.problems.append(
            f"{fields.where}: layer_types has {repr(strange[0])[:40]}, expected one of {', '.join(allowed)}"
        )
    return usual if len(found) != len(usual) or strange else found


def attentions(config: TransformerConfig) -> list[AttentionConfig]:
    """The plain attention of every layer, in order."""
    return [block.mixer for block in config.stack.blocks if isinstance(block.mixer, AttentionConfig)]


def types(config: TransformerConfig) -> list[str]:
    """layer_types."""
    return [CHUNKED if m.chunk else SLIDING if m.window else FULL for m in attentions(config)]


def stack(blocks: Sequence[BlockConfig], final_norm: NormConfig | None) -> StackConfig:
    """The shortest description: a prefix, a pattern repeated, a suffix."""
    first, period, repeats = _period([blocks.index(block) for block in blocks])
    last = first + period * repeats
    return StackConfig(
        prefix=tuple(blocks[:first]),
        pattern=tuple(blocks[first : first + period]),
        repeats=repeats,
        suffix=tuple(blocks[last:]),
        final_norm=final_norm,
    )


def _period(kinds: list[int]) -> tuple[int, int, int]:
    """(start, period, repeats) with the fewest layers outside the repeated ones; of equals the shortest period."""
    best, cost = (0, 1, 1), len(kinds) + 1
    for period in range(1, len(kinds) + 1):
        start = 0
        for i in range(period, len(kinds) + 1):
            if i < len(kinds) and kinds[i] == kinds[i - period]:
                continue
            repeats = (i - start) // period
            if repeats and len(kinds) - period * (repeats - 1) < cost:
                best, cost = (start, period, repeats), len(kinds) - period * (repeats - 1)
            start = i - period + 1
    return best
