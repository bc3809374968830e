"""Rows of a family's table: a tensor of another house, the parameters here, and how one becomes the other.

The same row is read for import and for export. Sizes are never written down: the shapes of our parameters give them.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import einops
import numpy as np
from flax import nnx

from pretrain.models.config import StackConfig, TransformerConfig

WORDS = {"two": 2, "three": 3, "four": 4}
"""Axes of a pattern whose size its name gives."""


@dataclass(frozen=True)
class Rule:
    """One tensor there and what it is here.

    In `ours`, {layer} is the place of a layer in the stack named before it (`decoder/{layer}/mlp/up` becomes
    `decoder/pattern/0/mlp/up`, with the repeat as leading axis); in `theirs`, {i} is its number in that stack, counted
    on from the layers of the stack `after`. With {e} in `theirs` there is a tensor for each expert, a leading axis
    here.

    `pattern` is einops, read from theirs to ours, where `two`, `three` and `four` are sizes. A fused tensor has tuples
    of `ours` and `pattern`: its parts, one after another along `axis` of theirs. That is the number of a dimension, or
    the name of an axis inside one, where the other parts have theirs in the same place: along "g", the two patterns
    `(k g h) -> k g h` and `(k 1 h) -> k h` are the queries of each group and, after them, its key.

    A row whose parameters the model does not have (a bias, a head), or has with another number of axes (a mixture of
    experts for an MLP), is left out; so is one without the parameter `beside`, or with the parameter `instead`.
    """

    theirs: str
    ours: str | tuple[str, ...]
    pattern: str | tuple[str, ...]
    axis: int | str = 0
    after: str | None = None
    beside: str | None = None
    instead: str | None = None

    def parts(self) -> tuple[tuple[str, str], ...]:
        ours = (self.ours,) if isinstance(self.ours, str) else self.ours
        patterns = (self.pattern,) if isinstance(self.pattern, str) else self.pattern
        return tuple(zip(ours, patterns, strict=True))


@dataclass(frozen=True)
class Part:
    """A slice of one of our parameters as it lies in one of their tensors."""

    name: str
    index: tuple[int, ...]
    """Into the leading axes of layers and experts, as far as it has them."""
    pattern: str
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """In their layout."""
        return tuple(math.prod(_size(axis, self.sizes) for axis in axes) for axes in _axes(self.pattern, 0))

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        return einops.rearrange(theirs, self.pattern, **self.sizes)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        left, right = self.pattern.split("->")
        return einops.rearrange(ours[self.index], f"{right} -> {left}", **self.sizes)


@dataclass(frozen=True)
class Row:
    """A rule applied to one layer of one model."""

    theirs: str
    axis: int
    parts: tuple[Part, ...]
    groups: tuple[int, ...]
    """How many dimensions of `laid` each dimension of the tensor consists of."""

    @property
    def laid(self) -> tuple[int, ...]:
        """The tensor's shape with the axis of the parts as a dimension of its own."""
        shapes = [part.shape for part in self.parts]
        return (*shapes[0][: self.axis], sum(s[self.axis] for s in shapes), *shapes[0][self.axis + 1 :])

    @property
    def shape(self) -> tuple[int, ...]:
        laid = iter(self.laid)
        return tuple(math.prod(next(laid) for _ in range(n)) for n in self.groups)

    def places(self) -> Iterator[tuple[Part, tuple[slice, ...]]]:
        """Each part and where it lies in the tensor as `laid`."""
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.axis]
            yield part, (*(slice(None),) * self.axis, slice(start, stop))
            start = stop


def linear(theirs: str, ours: str, pattern: str = "o d -> d o", bias: str = "o -> o") -> tuple[Rule, Rule]:
    """`theirs`.weight and .bias are `ours` and `ours`_bias."""
    return Rule(f"{theirs}.weight", ours, pattern), Rule(f"{theirs}.bias", f"{ours}_bias", bias)


def output(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The last map of a head or task."""
    return Rule(f"{theirs}.weight", f"{ours}/kernel", "o d -> d o"), Rule(f"{theirs}.bias", f"{ours}/bias", "o -> o")


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(f"{theirs}.weight", f"{ours}/scale", "d -> d"), Rule(f"{theirs}.bias", f"{ours}/bias", "d -> d")


def attention(theirs: Sequence[str], ours: str) -> tuple[Rule, ...]:
    """`theirs`: the maps of queries, keys, values and output."""
    query, key, value, out = theirs
    return (
        *linear(query, f"{ours}/query", "(k g h) d -> d k g h", "(k g h) -> k g h"),
        *linear(key, f"{ours}/key", "(k h) d -> d k h", "(k h) -> k h"),
        *linear(value, f"{ours}/value", "(k h) d -> d k h", "(k h) -> k h"),
        *linear(out, f"{ours}/out", "d (k g h) -> k g h d", "d -> d"),
    )


def table(rules: tuple[Rule, ...], config: TransformerConfig, params: Mapping[str, nnx.Param]) -> list[Row]:
    """Every rule for every layer and expert, layer by layer within a rule."""
    stacks = layers(config)
    rows = []
    for rule in rules:
        stack, inside, _ = rule.parts()[0][0].partition("/{layer}")
        start = len(stacks[rule.after]) if rule.after in stacks else 0
        for i, (place, index) in enumerate(stacks.get(stack, []) if inside else [("", ())], start):
            parts = [(ours.format(layer=place), pattern) for ours, pattern in rule.parts()]
            needed = [name for name, _ in parts] + ([rule.beside.format(layer=place)] if rule.beside else [])
            other = rule.instead.format(layer=place) if rule.instead else None
            if all(name in params for name in needed) and other not in params:
                experts = params[parts[0][0]].shape[len(index) : len(index) + 1] if "{e}" in rule.theirs else ()
                for e in range(*experts) if experts else (None,):
                    at = index if e is None else (*index, e)
                    row = _row(rule.theirs.format(i=i, e=e), rule.axis, at, parts, params)
                    rows += [] if row is None else [row]
    return rows


def layers(config: TransformerConfig) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Place and index into its leading axis, of every layer of every stack in order."""

    def places(stack: StackConfig) -> list[tuple[str, tuple[int, ...]]]:
        return [
            *((f"prefix/{j}", ()) for j in range(len(stack.prefix))),
            *((f"pattern/{p}", (r,)) for r in range(stack.repeats) for p in range(len(stack.pattern))),
            *((f"suffix/{j}", ()) for j in range(len(stack.suffix))),
        ]

    out = {name: places(s) for name, s in (("encoder", config.encoder), ("decoder", config.decoder)) if s}
    if config.ahead:
        out["ahead_modules"] = [(str(d), ()) for d in range(config.ahead.depth)]
    return out


def _row(theirs: str, axis: int | str, index: tuple[int, ...], parts, params: Mapping[str, nnx.Param]) -> Row | None:
    groups = tuple(len(axes) for axes in _axes(parts[0][1], 0))
    if isinstance(axis, str):
        axis = [a for axes in _axes(parts[0][1], 0) for a in axes].index(axis)
        parts = [(name, _flat(pattern)) for name, pattern in parts]
    else:
        groups = (1,) * len(groups)
    bound = [_bind(name, index, pattern, params[name].shape[len(index) :]) for name, pattern in parts]
    return None if None in bound else Row(theirs, axis, tuple(bound), groups)  # type: ignore


def _bind(name: str, index: tuple[int, ...], pattern: str, shape: tuple[int, ...]) -> Part | None:
    """None where the parameter has another number of axes."""
    right, sizes = _axes(pattern, 1), {w: n for w, n in WORDS.items() if w in re.findall(r"\w+", pattern)}
    if len(right) != len(shape):
        return None
    for axes, size in zip(right, shape):
        unknown = [a for a in axes if a not in sizes and not a.isdigit()]
        known = math.prod(_size(a, sizes) for a in axes if a not in unknown)
        sizes |= {a: size // known for a in unknown}
    return Part(name, index, pattern, sizes)


def _axes(pattern: str, side: int) -> list[list[str]]:
    """The axes of each dimension, on the left side (0) or the right (1)."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", pattern.split("->")[side])
    return [(many or one).split() for many, one in groups]


def _flat(pattern: str) -> str:
    """Every axis of theirs as a dimension."""
    left, right = pattern.split("->")
    return f"{left.replace('(', ' ').replace(')', ' ')} -> {right}"


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    return int(axis) if axis.isdigit() else sizes[axis]
