"""Weights of another house as a table: each row names a tensor there, parameters here, and how one becomes the other.

The same row is read for import and for export. Sizes are never written down: the shapes of our parameters give them.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import einops
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pretrain.errors import UserError
from pretrain.models import tree
from pretrain.models.config import StackConfig, TransformerConfig
from pretrain.models.convert.safetensors import Tensor, listed
from pretrain.models.transformer import Transformer

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""What a checkpoint may hold; anything else is quantised, or not a weight."""


@dataclass(frozen=True)
class Rule:
    """One tensor there and what it is here.

    In `theirs`, {i} is the number of the layer; in `ours`, {layer} is its place in the stack (`pattern/0`, with the
    repeat as leading axis). `pattern` is einops, read from theirs to ours; on our side each axis has a name of its own.
    A fused tensor has tuples of `ours` and `pattern`: its parts, one after another along `axis` of theirs.
    A row whose parameters the model does not have (a bias, a head) is left out.
    """

    theirs: str
    ours: str | tuple[str, ...]
    pattern: str | tuple[str, ...]
    axis: int = 0

    def parts(self) -> tuple[tuple[str, str], ...]:
        ours = (self.ours,) if isinstance(self.ours, str) else self.ours
        patterns = (self.pattern,) if isinstance(self.pattern, str) else self.pattern
        return tuple(zip(ours, patterns, strict=True))


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture of `transformers`: its config, its tensors, and what its checkpoints hold besides."""

    architecture: str
    model_type: str
    rules: tuple[Rule, ...]
    from_hf: Callable[[Mapping], TransformerConfig]
    to_hf: Callable[[TransformerConfig, int | None], dict]
    """Of a config and the longest sequence it is meant for. Says what it can; `fields.expressed` finds the rest."""
    base: str
    """The prefix that checkpoints of the model without its head leave out."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors that hold no parameters."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(copy, original): a tied tensor that some writers store again."""


@dataclass(frozen=True)
class Part:
    """A slice of one of our parameters as it lies in one of their tensors."""

    name: str
    index: int | None
    """Into the leading `layers` axis; None where the layer stands alone."""
    pattern: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """In their layout."""
        groups = re.findall(r"\(([^)]*)\)|(\S+)", self.pattern.split("->")[0])
        return tuple(math.prod(dict(self.sizes)[axis] for axis in (many or one).split()) for many, one in groups)

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        return einops.rearrange(theirs, self.pattern, **dict(self.sizes))

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        left, right = self.pattern.split("->")
        return einops.rearrange(ours if self.index is None else ours[self.index], f"{right} -> {left}")


@dataclass(frozen=True)
class Row:
    """A rule applied to one layer of one model."""

    theirs: str
    axis: int
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [part.shape for part in self.parts]
        return (*shapes[0][: self.axis], sum(s[self.axis] for s in shapes), *shapes[0][self.axis + 1 :])

    def places(self) -> Iterator[tuple[Part, tuple[slice, ...]]]:
        """Each part and where it lies in the tensor."""
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.axis]
            yield part, (*(slice(None),) * self.axis, slice(start, stop))
            start = stop


def layers(stack: StackConfig) -> list[tuple[str, int | None]]:
    """Place in the stack and index into its leading axis, of every layer in order."""
    return [
        *((f"prefix/{j}", None) for j in range(len(stack.prefix))),
        *((f"pattern/{p}", r) for r in range(stack.repeats) for p in range(len(stack.pattern))),
        *((f"suffix/{j}", None) for j in range(len(stack.suffix))),
    ]


def table(rules: tuple[Rule, ...], config: TransformerConfig, params: Mapping[str, nnx.Param]) -> list[Row]:
    """Every rule for every layer, layer by layer within a rule."""
    rows = []
    for rule in rules:
        inside = "{layer}" in rule.parts()[0][0]
        for i, (place, index) in enumerate(layers(config.stack) if inside else [("", None)]):
            parts = [(ours.format(layer=place), pattern) for ours, pattern in rule.parts()]
            if all(name in params for name, _ in parts):
                bound = tuple(_bind(name, index, pattern, params[name].shape) for name, pattern in parts)
                rows.append(Row(rule.theirs.format(i=i), rule.axis, bound))
    return rows


def _bind(name: str, index: int | None, pattern: str, shape: tuple[int, ...]) -> Part:
    axes = pattern.split("->")[1].split()
    return Part(name, index, pattern, tuple(zip(axes, shape[index is not None :], strict=True)))


def to_theirs(family: Family, model: Transformer, dtype: np.dtype) -> dict[str, Tensor]:
    """The tensors of a checkpoint of `family`, each made when it is read."""
    params = tree.params(model)
    rows = table(family.rules, model.config, params)
    if lost := sorted(set(params) - {part.name for row in rows for part in row.parts}):
        raise UserError(
            f"found {listed(lost)} in the model, {family.architecture} has no place for them; export another"
        )

    def read(row: Row) -> np.ndarray:
        parts = [part.to_theirs(np.asarray(params[part.name][...])) for part in row.parts]
        whole = np.concatenate(parts, axis=row.axis) if len(parts) > 1 else parts[0]
        with np.errstate(over="ignore"):
            out = whole.astype(dtype)
        if not np.isfinite(out).all():
            raise UserError(
                f"tensor {row.theirs}: found numbers that are not finite as {dtype}; export another step or dtype"
            )
        return out

    return {row.theirs: Tensor(row.shape, dtype, lambda row=row: read(row)) for row in rows}


Place = Callable[[str, nnx.Param, np.ndarray], object]
"""From a parameter's name, its description and its numbers to an array on devices."""


def to_ours(
    family: Family,
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    place: Place,
    dtype: DTypeLike = np.float32,
) -> Transformer:
    """The model with the weights of a checkpoint; holds one parameter at a time on the host besides what `place` keeps.

    Raises UserError for every tensor that is missing, has the wrong shape or type, or that nobody reads.
    """
    model = tree.abstract(config, dtype)
    params = tree.params(model)
    spelled = _spelling(family, tensors)
    rows = [replace(row, theirs=spelled(row.theirs)) for row in table(family.rules, config, params)]
    aliases = {copy: spelled(original) for copy, original in family.aliases}
    if problems := [*_problems(family, rows, aliases, tensors), *_unwritten(params, rows)]:
        raise UserError(*problems)
    sources: dict[str, list[tuple[Part, str, tuple[slice, ...]]]] = {}
    for row in rows:
        for part, where in row.places():
            sources.setdefault(part.name, []).append((part, row.theirs, where))

    def of(name: str, param: nnx.Param):
        value = np.empty(param.shape, param.dtype)
        for part, theirs, where in sources.get(name, ()):
            value[... if part.index is None else part.index] = part.to_ours(tensors[theirs].read()[where])
        return place(name, param, value)

    return tree.like(model, of)


def _spelling(family: Family, tensors: Mapping[str, Tensor]) -> Callable[[str], str]:
    """How this checkpoint spells a name: with the family's prefix or, saved from the bare model, without."""
    bare = not any(name.startswith(family.base) for name in tensors)
    return lambda name: name.removeprefix(family.base) if bare else name


def _problems(family: Family, rows: list[Row], aliases: dict[str, str], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    wanted = {row.theirs: row.shape for row in rows}
    if missing := [name for name in wanted if name not in tensors]:
        yield f"found no tensor {listed(missing)}, expected it in {family.architecture}; the checkpoint is incomplete"
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor and tensor.shape != shape:
            yield f"tensor {name}: found shape {list(tensor.shape)}, config.json says {list(shape)}; correct one"
        if tensor and tensor.dtype.name not in FLOATS:
            yield f"tensor {name}: found {tensor.dtype.name}, expected one of {', '.join(FLOATS)}; dequantise it first"
    if unread := [n for n in tensors if n not in wanted and n not in aliases and not _ignored(family, n)]:
        yield (
            f"found tensor {listed(unread)}, which {family.architecture} with this config.json does not have; "
            "correct config.json or remove it"
        )
    for copy, original in aliases.items():
        if copy in tensors and copy not in wanted and original in tensors:
            a, b = tensors[copy].read(), tensors[original].read()
            if a.shape != b.shape or a.tobytes() != b.tobytes():
                yield f"{copy} differs from {original}, which config.json ties to it; set tie_word_embeddings to false"


def _ignored(family: Family, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def _unwritten(params: Mapping[str, nnx.Param], rows: list[Row]) -> Iterator[str]:
    """What no row fills whole: a hole in the table, not in the checkpoint."""
    written = Counter(part.name for row in rows for part in row.parts)
    indexed = {part.name for row in rows for part in row.parts if part.index is not None}
    if holes := [n for n, p in params.items() if p.size and written[n] != (p.shape[0] if n in indexed else 1)]:
        yield f"no tensor fills the parameter {listed(holes)}; the family's table has no row for it"
