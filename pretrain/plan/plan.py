"""A plan: does a run fit on a slice, how fast is it, what would help."""

from dataclasses import dataclass, replace
from typing import Any

from pretrain.config import BatchConfig, RunConfig
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.errors import UserError
from pretrain.models import accounting
from pretrain.models.config import TransformerConfig
from pretrain.models.remat import PRESETS as REMATS
from pretrain.objectives.config import MaskedLm, NextToken, SpanCorruption
from pretrain.optimizer.config import Cosine, OptimizerConfig
from pretrain.plan import analytic, compiler
from pretrain.plan.chips import Slice
from pretrain.sharding.axes import MESH_AXES

ATTEMPTS = 4
"""Changes that are compiled to find two that fit. Those that do not are refused before most of the compiler's work."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What else one could do, as options of the command line."""

    options: tuple[str, ...]
    config: RunConfig
    peak: float
    """Bytes, by arithmetic."""
    seconds: float

    def told(self) -> str:
        return " ".join(self.options)


def run_of(model: TransformerConfig, rows: int, length: int) -> RunConfig:
    """A model alone as a run with AdamW and the usual objective of its kind."""
    objective = NextToken() if not model.encoder else SpanCorruption() if model.decoder else MaskedLm()
    tokenizer = TrainSentencePiece(vocab_size=min(model.vocab_size, 32768))
    return RunConfig(
        model=model,
        data=DataConfig(corpus=CorpusConfig(source=StandardLibrary(), tokenizer=tokenizer), sequence_length=length),
        objective=objective,
        optimizer=OptimizerConfig(peak_lr=3e-4, schedule=Cosine(warmup_steps=2000)),
        batch=BatchConfig(rows=rows),
        steps=100_000,
    )


def plan(
    config: RunConfig,
    on: Slice,
    *,
    quick: bool = False,
    options: dict[str, Any] | None = None,
    save: str | None = None,
) -> dict[str, Any]:
    """JSON values; `docs/plan.md` explains them. Raises UserError for what cannot be planned."""
    config = replace(config, simulate=None)
    config.check(on.devices)
    if save is not None and on.chip.gpu is not None:
        raise UserError(
            f"save={save}: found a GPU, whose kernels are tuned where they run, expected a TPU; leave --save out"
        )
    facts = None if quick else compiler.compiled(config, on, options, save)
    found = assembled(config, on, facts)
    if facts is None or found["fits"]:
        return {**found, "changes": [_shown(c) for c in advice(config, on, found)[:2]]}
    return {**found, "changes": proven(advice(config, on, found), on, options)}


def assembled(config: RunConfig, on: Slice, facts: dict[str, Any] | None) -> dict[str, Any]:
    """All but the changes."""
    parts = analytic.stored(config, on.devices)
    quick = analytic.memory(config, on, parts)
    work = analytic.work(config, on.devices, parts)
    known = _memory(quick, on, facts)
    low, likely, high, limits = _speed(work, on, facts)
    program = (facts or {}).get("program") or {}
    tokens, useful = analytic.tokens(config), analytic.model_flops(config)
    step = likely or None
    return {
        "on": on.vendor,
        "topology": on.topology,
        "chips": on.chips,
        "devices": on.devices,
        "basis": "arithmetic" if facts is None else "compiled",
        "parameters": accounting.parameters(config.model).total,
        "mesh": {axis: n for axis, n in config.mesh.shape(on.devices).items() if n > 1},
        "rules": config.rules if isinstance(config.rules, str) else "own",
        "fits": known["peak_bytes"] <= known["limit_bytes"],
        "memory": known,
        "step_seconds": [low, likely, high],
        "limited_by": limits,
        "walked": "seconds" in program,
        "mfu": useful / (step * on.devices * on.chip.peak) if step else None,
        "tokens_per_second": tokens / step if step else None,
        "tokens_per_step": tokens,
        "steps": config.steps,
        "days": config.steps * step / 86400 if step else None,
        "chip_hours": config.steps * step / 3600 * on.chips if step else None,
        "cycles": program.get("cycles"),
        "flops": program.get("flops", work.flops),
        "model_flops": work.model_flops,
        "collectives": _collectives(program),
        "loops_without_turns": program.get("endless", 0),
        "loops_not_entered": program.get("seldom", 0),
        "compile_seconds": (facts or {}).get("compile_seconds"),
        "cached": (facts or {}).get("cached", False),
        "notes": [_no_faster(matmul, on) for matmul in sorted(work.narrow) if on.chip.times(matmul) == 1],
    }


def _no_faster(matmul: str, on: Slice) -> str:
    faster = " or ".join(on.chip.eight_bits) or "bfloat16, with matmul float"
    return f"matmul {matmul}: {on.chip.name} is not known to multiply so any faster than in bfloat16; use {faster}"


def _memory(quick: analytic.Memory, on: Slice, facts: dict[str, Any] | None) -> dict[str, Any]:
    """Bytes of one device by cause. Compiled: `temporaries` are activations, gradients and all else that comes and
    goes; what lies between the arrays' bytes and the compiler's is padding to tiles."""
    if facts is None:
        causes = {f"{name}_bytes": value for name, value in vars(quick).items()}
        return {"peak_bytes": quick.peak, "limit_bytes": on.chip.memory, **causes}
    causes = {f"{name}_bytes": value for name, value in facts["causes"].items()}
    if "refused" in facts:
        refused = facts["refused"]
        temporaries = max(0, refused["peak"] - sum(facts["causes"].values()))
        return {
            "peak_bytes": refused["peak"],
            "limit_bytes": refused["limit"],
            **causes,
            "temporaries_bytes": temporaries,
        }
    memory = facts["memory"]
    return {
        "peak_bytes": memory["peak"],
        "limit_bytes": on.chip.memory,
        "arguments_bytes": memory["argument"],
        **causes,
        "padding_bytes": memory["argument"] - sum(facts["causes"].values()),
        "temporaries_bytes": memory["temp"],
        "outputs_bytes": memory["output"] - memory["alias"],
        "code_bytes": memory["generated_code"],
        "host_bytes": memory["host"],
    }


def _speed(
    work: analytic.Work, on: Slice, facts: dict[str, Any] | None
) -> tuple[float, float, float, dict[str, float]]:
    """Low, likely, high and the share of each cause; zeros for a program that does not fit."""
    if facts is None:
        compute, network, update = analytic.parts_of(work, on)
        low, likely, high = analytic.seconds(work, on)
        return low, likely, high, _shares(compute=compute, network=network * analytic.EXPOSED, memory=update)
    if "program" not in facts:
        return 0.0, 0.0, 0.0, {}
    program, clock = facts["program"], on.chip.clock or 1.0
    if "seconds" in program:
        return _walked(**program["seconds"])
    # Kernels rarely say what they do; those of experts count places for tokens, filled or not, and visit the filled.
    unsaid = max(0.0, work.flops - program["flops"]) if program["kernels"] else 0.0
    kernels = (unsaid or program["kernel_flops"]) / (on.chip.peak * analytic.KERNEL_EFFICIENCY)
    compute = program["cycles"] / clock + kernels
    wire = {hides: 0.0 for hides in (True, False)}
    for c in program["collectives"]:
        wire[c["asynchronous"]] += c["bytes"] / on.chip.link_bandwidth
    hidden = min(wire[True], compute)
    late = wire[True] - hidden
    hosted = 2 * facts["memory"]["host"] / analytic.HOST_LINK
    sooner = work.flops - analytic.as_bfloat16(work, on)
    matmuls = min(compute, max(0.0, program["flops"] - sooner) / on.chip.peak + kernels)
    shares = _shares(compute=matmuls, network=wire[False] + late, memory=compute - matmuls + hosted)
    low = max(compute, wire[True] + wire[False], hosted)
    return low, compute + wire[False] + late + hosted, (compute + wire[True] + wire[False] + hosted) * 1.1, shares


def _walked(compute: float, memory: float, waiting: float, links: float):
    """Of a schedule that was walked (`timeline`): low where all traffic hides, high where none does."""
    busy = compute + memory
    shares = _shares(compute=compute, network=waiting, memory=memory)
    return max(busy, links), busy + waiting, (busy + links) * 1.1, shares


def _shares(**parts: float) -> dict[str, float]:
    total = sum(parts.values()) or 1.0
    return {name: value / total for name, value in parts.items()}


def _collectives(program: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "kind": c["kind"],
            "axis": "+".join(a for a in c["axes"] if a in MESH_AXES) or None,
            "devices": c["size"],
            "count": c["count"],
            "bytes": c["bytes"],
            "asynchronous": c["asynchronous"],
            "nodes": c["nodes"],
        }
        for c in program.get("collectives", ())
    ]


def _shown(change: Change) -> dict[str, Any]:
    said = {"peak_bytes": change.peak, "step_seconds": change.seconds}
    return {"options": change.told(), "basis": "arithmetic", **said}


def advice(config: RunConfig, on: Slice, plan: dict[str, Any]) -> list[Change]:
    """Changes, the best first, then where there is one another of another kind: for a run that does not fit, those that
    would; for one that does, those that would be faster. Memory is what is stored, and the rest of the plan's peak as
    much larger or smaller as arithmetic says."""
    quick = analytic.memory(config, on, analytic.stored(config, on.devices))
    found = _judged(neighbours(config, on), config, on, plan, quick)
    if len(found) < 2 and not plan["fits"]:
        found += _judged(twice(config, on), config, on, plan, quick)
    other = next((c for c in found if c.options[0] != found[0].options[0]), None)
    return found if other is None else [found[0], other, *(c for c in found[1:] if c is not other)]


def proven(changes: list[Change], on: Slice, options: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The first two that fit as the compiler says, of at most `ATTEMPTS`."""
    out = []
    for change in changes[:ATTEMPTS]:
        found = assembled(change.config, on, compiler.compiled(change.config, on, options))
        if found["fits"]:
            said = {"peak_bytes": found["memory"]["peak_bytes"], "step_seconds": found["step_seconds"][1]}
            out.append({"options": change.told(), "basis": "compiled", **said})
        if len(out) == 2:
            break
    return out


def _judged(candidates, config: RunConfig, on: Slice, plan: dict[str, Any], quick: analytic.Memory) -> list[Change]:
    """Those that help, the fastest first."""
    now, limit, found = plan["step_seconds"][1], plan["memory"]["limit_bytes"], []
    base = analytic.seconds(analytic.work(config, on.devices, analytic.stored(config, on.devices)), on)[1]
    for options, other in candidates:
        parts = analytic.stored(other, on.devices)
        then = analytic.memory(other, on, parts)
        peak = then.stored + (plan["memory"]["peak_bytes"] - quick.stored) * then.passing / quick.passing
        seconds = analytic.seconds(analytic.work(other, on.devices, parts), on)[1]
        if peak <= limit and (not plan["fits"] or seconds < 0.98 * base):
            relative = seconds / base * now if now else seconds
            found.append(Change(options=options, config=other, peak=peak, seconds=relative))
    return sorted(found, key=lambda c: (c.seconds, c.peak))


def neighbours(config: RunConfig, on: Slice) -> list[tuple[tuple[str, ...], RunConfig]]:
    """Runs one change away that are legal: another remat, other micro-batches, another mesh, moments on the host."""
    out = [
        *((("--remat", name), with_remat(config, name)) for name in REMATS if with_remat(config, name) != config),
        *(
            (("--batch.accumulate", str(n)), replace(config, batch=replace(config.batch, accumulate=n)))
            for n in (1, 2, 4, 8, 16)
            if n != config.batch.accumulate and config.batch.rows % n == 0
        ),
        *((_mesh_options(other), other) for other in meshes(config, on) if other != config),
        (("--optimizer.offload",), replace(config, optimizer=replace(config.optimizer, offload=True))),
    ]
    named = [(_remat_options(config, o[1]) if o[0] == "--remat" else o, c) for o, c in out]
    return [(options, other) for options, other in named if legal(other, on)]


def twice(config: RunConfig, on: Slice) -> list[tuple[tuple[str, ...], RunConfig]]:
    """Another remat and other micro-batches together."""
    rows = config.batch.rows
    return [
        ((*_remat_options(config, name), "--batch.accumulate", str(n)), other)
        for name in REMATS
        for n in (2**k for k in range(1, rows.bit_length()))
        if rows % n == 0
        and legal(other := replace(with_remat(config, name), batch=replace(config.batch, accumulate=n)), on)
    ]


def legal(config: RunConfig, on: Slice) -> bool:
    try:
        config.check(on.devices)
    except UserError:
        return False
    return True


def meshes(config: RunConfig, on: Slice) -> list[RunConfig]:
    """Fully sharded, alone, with tensor parallelism, with copies."""
    out, m = [], config.mesh
    kept = m.context * m.expert * m.stage * m.dcn_data
    if kept < 1:  # one of them takes what remains
        return [config]
    for tensor in (1, 2, 4, 8):
        for data in (1, 2, 4):
            if on.devices % (tensor * data * kept):
                continue
            mesh = replace(m, data=data, fsdp=on.devices // (tensor * data * kept), tensor=tensor)
            rules = "fsdp_tp" if tensor > 1 else "fsdp"
            same = config.mesh.shape(on.devices) == mesh.shape(on.devices) and rules == config.rules
            out.append(config if same else replace(config, mesh=mesh, rules=rules))
    return list(dict.fromkeys(out)) if all(_hashable(c) for c in out) else out


def _hashable(config: RunConfig) -> bool:
    try:
        hash(config)
    except TypeError:
        return False
    return True


def _mesh_options(config: RunConfig) -> tuple[str, ...]:
    sizes = ((f"--mesh.{axis}", str(getattr(config.mesh, axis))) for axis in ("data", "fsdp", "tensor"))
    return (*(word for pair in sizes for word in pair), "--rules", str(config.rules))


def with_remat(config: RunConfig, name: str) -> RunConfig:
    """In every stack."""
    stacks = {k: getattr(config.model, k) for k in ("encoder", "decoder")}
    changed = {k: replace(s, remat=REMATS[name]) for k, s in stacks.items() if s is not None}
    return replace(config, model=replace(config.model, **changed))


def _remat_options(config: RunConfig, name: str) -> tuple[str, ...]:
    stacks = [k for k in ("encoder", "decoder") if getattr(config.model, k) is not None]
    return tuple(word for k in stacks for word in (f"--model.{k}.remat", name.replace("_", "-")))
