"""Weights of another house, in and out, by a family's table of rows: see `rules`."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pretrain.errors import UserError
from pretrain.models import tree
from pretrain.models.config import TransformerConfig
from pretrain.models.convert.rules import Part, Row, Rule, table
from pretrain.models.convert.safetensors import Tensor, listed
from pretrain.models.transformer import Transformer

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""What a checkpoint may hold; anything else is quantised, or not a weight."""

Answer = Callable[[Transformer, jax.Array], jax.Array]
"""From a model and its last hidden states to one of its outputs."""


def logits(model: Transformer, hidden_BTD: jax.Array) -> jax.Array:
    return model.logits(hidden_BTD)


def hidden(model: Transformer, hidden_BTD: jax.Array) -> jax.Array:
    return hidden_BTD


@dataclass(frozen=True)
class Said:
    """What a task says; `at`: one number of each."""

    task: str
    at: tuple[int, ...]

    def __call__(self, model: Transformer, hidden_BTD: jax.Array) -> jax.Array:
        return model.task(self.task, hidden_BTD)[(..., *self.at)]


def task(name: str, *at: int) -> Answer:
    return Said(name, at)


@dataclass(frozen=True)
class Constant:
    """A tensor of theirs that no parameter here holds, because it follows from the config: written, and compared where
    it is read."""

    theirs: str
    """Where it stands in each layer of a `stack`, {i} is the layer's number."""
    value: Callable[[TransformerConfig, int | None], np.ndarray | None]
    """Of a config and the longest sequence an export is meant for, or the rows of the tensor that is read. None where
    the model has no such tensor."""
    stack: Literal["encoder", "decoder"] | None = None
    written: bool = True
    tolerance: float = 0.0
    """Absolute, beside the rounding of the type in which it is stored."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture of `transformers`: its config, its tensors, and what its checkpoints hold besides.

    Architectures that differ in their heads share one table: rows without a parameter are left out.
    """

    architecture: str
    model_type: str
    rules: tuple[Rule, ...]
    from_hf: Callable[[Mapping], TransformerConfig]
    to_hf: Callable[[TransformerConfig, int | None], dict]
    """Of a config and the longest sequence it is meant for. Says what it can; `fields.expressed` finds the rest."""
    base: str
    """The prefix that checkpoints of the model without its head leave out."""
    bare: bool = False
    """This architecture is the model without its head: it is written without the prefix."""
    refine: Callable[[TransformerConfig, Collection[str]], TransformerConfig] = lambda config, names: config
    """The config, given the names of a checkpoint's tensors too: heads that config.json does not tell of."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors that hold no parameters."""
    optional: tuple[str, ...] = ()
    """Regular expressions of tensors of a head that `transformers` has and a model here may do without."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(copy, original): a tied tensor that some writers store again."""
    constants: tuple[Constant, ...] = ()
    legacy: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement): how older writers spelled a part of a name."""
    outputs: Mapping[str, Answer] = field(default_factory=lambda: {"logits": logits})
    """What `transformers` calls an output, and the same here."""
    fixed: tuple[str, ...] = ()
    """Fields of config.json that look like a tokenizer's and change what the model computes."""
    pipeline: str = "text-generation"
    """What the hub calls its use."""

    def answers(self, config: TransformerConfig) -> dict[str, Answer]:
        """The outputs of a model that may do without a task."""
        tasks = {task.name for task in config.tasks}
        return {n: a for n, a in self.outputs.items() if not isinstance(a, Said) or a.task in tasks}

    def may_lack(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.optional)


def to_theirs(family: Family, model: Transformer, dtype: np.dtype, length: int | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint of `family` for sequences of `length`, each made when it is read."""
    params = tree.params(model)
    rows = table(family.rules, model.config, params)
    if lost := sorted(set(params) - {part.name for row in rows for part in row.parts}):
        raise UserError(
            f"found {listed(lost)} in the model, {family.architecture} has no place for them; export another"
        )

    def read(row: Row) -> np.ndarray:
        parts = [part.to_theirs(np.asarray(params[part.name][...])) for part in row.parts]
        whole = np.concatenate(parts, axis=row.axis) if len(parts) > 1 else parts[0]
        return _cast(row.theirs, whole.reshape(row.shape), dtype)

    def spelled(name: str) -> str:
        return name.removeprefix(family.base) if family.bare else name

    out = {spelled(row.theirs): Tensor(row.shape, dtype, lambda row=row: read(row)) for row in rows}
    for name, constant in _constants(family, model.config).items():
        value = constant.value(model.config, length) if constant.written else None
        if value is not None:
            out[spelled(name)] = Tensor(value.shape, dtype, lambda name=name, value=value: _cast(name, value, dtype))
    return out


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = value.astype(dtype)
    if not np.isfinite(out).all():
        raise UserError(f"tensor {name}: found numbers that are not finite as {dtype}; export another step or dtype")
    return out


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
    tensors = modern(family, tensors)
    spelled = _spelling(family, tensors)
    rows = [replace(row, theirs=spelled(row.theirs)) for row in table(family.rules, config, params)]
    aliases = {copy: spelled(original) for copy, original in family.aliases}
    constants = {spelled(name): constant for name, constant in _constants(family, config).items()}
    problems = [*_problems(family, rows, {*aliases, *constants}, tensors), *_unwritten(params, rows)]
    problems += [*_untied(aliases, rows, tensors), *_inconstant(family, config, constants, tensors)]
    if problems:
        raise UserError(*problems)
    sources: dict[str, list[tuple[Part, Row, tuple[slice, ...]]]] = {}
    for row in rows:
        for part, where in row.places():
            sources.setdefault(part.name, []).append((part, row, where))

    def of(name: str, param: nnx.Param):
        value = np.empty(param.shape, param.dtype)
        for part, row, where in sources.get(name, ()):
            value[part.index] = part.to_ours(tensors[row.theirs].read().reshape(row.laid)[where])
        return place(name, param, value)

    return tree.like(model, of)


def modern(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of today; raises UserError where two have one."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in family.legacy:
            name = re.sub(pattern, replacement, name)
        if name in out:
            raise UserError(f"found {name} in an old and a new spelling, expected one; remove the other")
        out[name] = tensor
    return out


def _spelling(family: Family, tensors: Mapping[str, Tensor]) -> Callable[[str], str]:
    """How this checkpoint spells a name: with the family's prefix or, saved from the bare model, without."""
    bare = not any(name.startswith(family.base) for name in tensors)
    return lambda name: name.removeprefix(family.base) if bare else name


def _constants(family: Family, config: TransformerConfig) -> dict[str, Constant]:
    """Those of this model by name, each layer's own."""
    out = {}
    for constant in family.constants:
        stack = getattr(config, constant.stack) if constant.stack else None
        count = len(stack.blocks) if stack else int(constant.stack is None)
        if constant.value(config, 1) is not None:
            out |= {constant.theirs.format(i=i): constant for i in range(count)}
    return out


def _problems(family: Family, rows: list[Row], known: set[str], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    wanted = {row.theirs: row.shape for row in rows}
    if missing := [name for name in wanted if name not in tensors]:
        yield f"found no tensor {listed(missing)}, expected it in {family.architecture}; the checkpoint is incomplete"
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor and tensor.shape != shape:
            yield f"tensor {name}: found shape {list(tensor.shape)}, config.json says {list(shape)}; correct one"
        if tensor and tensor.dtype.name not in FLOATS:
            yield f"tensor {name}: found {tensor.dtype.name}, expected one of {', '.join(FLOATS)}; dequantise it first"
    if unread := [n for n in tensors if n not in wanted and n not in known and not _ignored(family, n)]:
        yield (
            f"found tensor {listed(unread)}, which {family.architecture} with this config.json does not have; "
            "correct config.json or remove it"
        )


def _untied(aliases: dict[str, str], rows: list[Row], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    wanted = {row.theirs for row in rows}
    for copy, original in aliases.items():
        if copy in tensors and copy not in wanted and original in tensors:
            a, b = tensors[copy].read(), tensors[original].read()
            if a.shape != b.shape or a.tobytes() != b.tobytes():
                yield f"{copy} differs from {original}, which config.json ties to it; set tie_word_embeddings to false"


def _inconstant(
    family: Family, config: TransformerConfig, constants: dict[str, Constant], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    for name, constant in constants.items():
        if name not in tensors:
            continue
        found = tensors[name].read()
        value = constant.value(config, found.shape[0] if found.shape else None)
        eps = float(jax.numpy.finfo(found.dtype).eps) if found.dtype.name in FLOATS else 0.0
        if (
            value is None
            or found.shape != value.shape
            or not np.allclose(found.astype(float), value.astype(float), eps, constant.tolerance + eps)
        ):
            yield f"tensor {name}: found other numbers than {family.architecture} computes; export the model again"


def _ignored(family: Family, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def _unwritten(params: Mapping[str, nnx.Param], rows: list[Row]) -> Iterator[str]:
    """What no row fills whole: a hole in the table, not in the checkpoint."""
    parts = [part for row in rows for part in row.parts]
    written, depth = Counter(part.name for part in parts), {part.name: len(part.index) for part in parts}
    whole = {name: math.prod(p.shape[: depth.get(name, 0)]) for name, p in params.items() if p.size}
    if holes := [name for name, count in whole.items() if written[name] != count]:
        yield f"no tensor fills the parameter {listed(holes)}; the family's table has no row for it"
