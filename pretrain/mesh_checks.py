"""Whether a run can be laid out on so many devices: every problem at once. Imports no jax."""

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from pretrain.models.config import BlockConfig, MoeConfig, StackConfig, TransformerConfig
from pretrain.sharding.rules import AxisRules, Table, resolved

if TYPE_CHECKING:
    from pretrain.config import RunConfig

Sizes = dict[str, int]


def mesh_problems(config: "RunConfig", devices: int) -> list[str]:
    """What stands against this mesh. Raises UserError when its sizes do not multiply to the devices."""
    sizes = _sizes(config, devices)
    rules = resolved(config.rules)
    return [
        *_translations(config, devices),
        *_rows(config, sizes, rules),
        *_tokens(config, sizes, rules),
        *_weights(config, sizes, rules),
        *_experts(config.model, sizes, rules),
        *_stages(config, sizes, rules),
    ]


def _translations(config: "RunConfig", devices: int) -> Iterator[str]:
    if config.evals.translations and devices > 1:
        yield (
            f"evals.translations={config.evals.translations} with {devices} devices: a model translates on one; "
            "set it to 0, pretrain evaluate RUN --translations N does it afterwards"
        )


def _cut(table: Table, axis: str, sizes: Sizes) -> tuple[str, int]:
    """(mesh axes of more than one device along which a logical axis is cut, as they are told, and their product)."""
    axes = [m for m in table.get(axis, ()) if sizes[m] > 1]  # type: ignore
    return " x ".join(axes), prod(sizes[m] for m in axes)


def row_pieces(config: "RunConfig", devices: int) -> int:
    """Into how many equal pieces the rows of a micro-batch are cut: between devices, and by a pipeline."""
    return _pieces(config, _sizes(config, devices), resolved(config.rules))[1]


def _sizes(config: "RunConfig", devices: int) -> Sizes:
    return {str(axis): n for axis, n in config.mesh.shape(devices).items()}


def _pieces(config: "RunConfig", sizes: Sizes, rules: AxisRules) -> tuple[str, int]:
    axes, shards = _cut(rules.used, "batch", sizes)
    if _cut(rules.stored, "layers", sizes)[1] > 1 and config.mesh.micro > 1:
        return f"{axes} x micro", shards * config.mesh.micro
    return axes, shards


def _rows(config: "RunConfig", sizes: Sizes, rules: AxisRules) -> Iterator[str]:
    axes, shards = _pieces(config, sizes, rules)
    rows = config.batch.rows // config.batch.accumulate
    if rows % shards:
        near = sorted({max(1, rows // shards) * shards, (rows // shards + 1) * shards})
        yield (
            f"batch.rows / accumulate = {rows} is not a multiple of {axes} = {shards}; "
            f"nearest {' or '.join(map(str, near))}"
        )


def _tokens(config: "RunConfig", sizes: Sizes, rules: AxisRules) -> Iterator[str]:
    """Rows are cut along their tokens: whole ones by `length`, between blocks by `sequence`."""
    lengths = {"data.sequence_length": config.data.sequence_length}
    named = zip(("the last stack's row", "the encoder's row"), _lengths(config))
    lengths |= {name: n for name, n in named if n not in (None, config.data.sequence_length)}
    axes, parts = max((_cut(rules.used, axis, sizes) for axis in ("length", "sequence")), key=lambda cut: cut[1])
    halves = 2 if config.mesh.attention == "ring" and sizes["context"] > 1 else 1
    for name, length in lengths.items():
        yield from _divides(axes, parts, name, length)
        if length % parts == 0 and length % (halves * sizes["context"]):
            yield (
                f"mesh.attention=ring deals {name}={length} in 2 x context = {2 * sizes['context']} chunks; "
                f"choose a multiple of {2 * sizes['context']}, or attention=gather"
            )


def _lengths(config: "RunConfig") -> tuple[int, int | None]:
    return config.objective.lengths(config.data.sequence_length, config.model)


def _weights(config: "RunConfig", sizes: Sizes, rules: AxisRules) -> Iterator[str]:
    model = config.model
    yield from _divides(*_cut(rules.stored, "embed", sizes), "model.d_model", model.d_model)
    yield from _divides(*_cut(rules.used, "vocab", sizes), "vocab_size", model.vocab_size)
    found: set[tuple[str, int]] = set()
    for block in _blocks(model):
        mlp = block.mlp.expert if isinstance(block.mlp, MoeConfig) else block.mlp
        found |= {("kv_heads", getattr(block.mixer, "kv_heads", block.mixer.heads))}
        found |= {("d_ff", mlp.d_ff)} if mlp else set()
    for name, size in sorted(found):
        yield from _divides(*_cut(rules.used, "kv_heads" if name == "kv_heads" else "mlp", sizes), name, size)


def _experts(model: TransformerConfig, sizes: Sizes, rules: AxisRules) -> Iterator[str]:
    counts = sorted({block.mlp.experts for block in _blocks(model) if isinstance(block.mlp, MoeConfig)})
    axes, parts = _cut(rules.used, "expert", sizes)
    for count in counts:
        yield from _divides(axes, parts, "experts", count)
    if parts > 1 and not counts:
        yield f"mesh.expert={sizes['expert']}: found a model without experts; use fsdp={sizes['expert']} instead"


def _stages(config: "RunConfig", sizes: Sizes, rules: AxisRules) -> Iterator[str]:
    axes, stages = _cut(rules.stored, "layers", sizes)
    rounds = config.mesh.rounds
    if stages == 1:
        return
    if rounds > 1 and rounds % stages and stages % rounds:
        yield f"mesh.rounds={rounds} and stage={stages}: expected one to divide the other; choose 1, 2 or {stages}"
    for name, stack in _stacks(config.model).items():
        times = "" if rounds == 1 else f" x rounds = {stages * rounds}"
        if not stack.repeats:
            yield f"mesh.{axes}={stages}: found no repeated layers in {name}, expected a pattern to cut; set stage=1"
        elif stack.repeats % (stages * rounds):
            yield (
                f"mesh.{axes}{times or f'={stages}'} does not divide {name}.repeats={stack.repeats}; "
                f"choose {divisors(stack.repeats)}"
            )


def _divides(axes: str, parts: int, name: str, size: int) -> Iterator[str]:
    if size % parts:
        equals = "=" if " x " not in axes else " = "
        yield f"mesh.{axes}{equals}{parts} does not divide {name}={size}; choose {divisors(size)}"


def _stacks(model: TransformerConfig) -> dict[str, StackConfig]:
    stacks = {"model.encoder": model.encoder, "model.decoder": model.decoder}
    if model.generator is not None:
        stacks["model.generator.encoder"] = model.generator.encoder
    return {name: stack for name, stack in stacks.items() if stack is not None}


def _blocks(model: TransformerConfig) -> Iterator[BlockConfig]:
    for stack in _stacks(model).values():
        yield from stack.periods
    if model.ahead is not None:
        yield model.ahead.block


def divisors(n: int) -> str:
    found = [d for d in range(1, min(n, 64) + 1) if n % d == 0]
    return " or ".join(map(str, found[:6]))
