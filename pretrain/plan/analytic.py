"""A plan by arithmetic: exact for what is stored, a guide for what a step keeps, does and sends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config import RunConfig
from pretrain.models import accounting
from pretrain.models.config import (
    Alibi,
    AttentionConfig,
    BlockConfig,
    MlaConfig,
    MoeConfig,
    RelativeBias,
    Remat,
    StackConfig,
)
from pretrain.plan.chips import Chip, Slice
from pretrain.sharding.rules import resolved

EFFICIENCY = 0.7
"""Share of the peak that matrix products of dense models reach: the compiler's schedules of Llama-2 7B and 70B for v5p
take 0.61 to 0.78 of it."""
EIGHT_BITS = 0.57
"""Share of the higher rate in 8 bits that is left to a step that also finds scales and rounds: Llama 2 7B, every layer
computed again, 8192 tokens a chip of v5e, takes 4.04 billion scheduled cycles in int8 and 4.56 in bfloat16."""
KERNEL_EFFICIENCY = 0.6
"""Share of the peak that attention kernels are taken to reach: no compiler estimates time for them."""
EXPOSED = 0.5
"""Share of the traffic that no computation hides: none of a TPU's asynchronous collectives, all of its others."""
HOST_LINK = 15e9
"""Bytes per second between a device and its host's memory, each way: jax-ml.github.io/scaling-book/tpus on PCIe."""
SCORES = 10
"""Bytes of one attention score while its layer is differentiated: logits and their gradient in f32, weights in bf16.
The reference attention keeps them, flash attention does not."""
BIAS = 2
"""Bytes of one pair of a query and a key where cuDNN is told of packed rows: bf16, for all heads."""

_STORED: dict[str, dict[str, int]] = {}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device."""

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    logits: int
    gathered: int
    """Weights of one period as they are used."""
    host: int
    """In the memory of the device's host, and moved twice every step."""

    @property
    def peak(self) -> int:
        return sum(vars(self).values()) - self.host

    @property
    def stored(self) -> int:
        """From one step to the next, with the batch."""
        return self.parameters + self.optimizer + self.batch

    @property
    def passing(self) -> int:
        """Within a step."""
        return self.peak - self.stored


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one step on one device."""

    model_flops: float
    """Forward and backward, causal attention once, nothing recomputed."""
    flops: float
    """With what rematerialisation computes again."""
    narrow: Mapping[str, float]
    """Those of `flops` that are products in 8 bits, by the `matmul` of their stack."""
    sent: float
    """Bytes over the links."""
    waiting: float = 1.0
    """Time of the computation for each second of work: more than 1 in a pipeline."""
    touched: float
    """Bytes of parameters, gradients and optimizer state that the update moves through memory."""
    hosted: float
    """Bytes that come from the host's memory, and go back."""


def shards(config: RunConfig, devices: int, *axes: str) -> int:
    """Parts into which activations are cut along these logical axes."""
    sizes, used = config.mesh.shape(devices), resolved(config.rules).used
    return math.prod(sizes[m] for m in {m for axis in axes for m in used.get(axis, ())})  # type: ignore


def stored(config: RunConfig, devices: int) -> dict[str, int]:
    """Bytes of one device's parameters, optimizer state and batch: those of the arrays that a run would make."""
    key = repr(
        (config.model, config.optimizer, config.mesh, config.rules, config.batch.rows, config.objective, devices)
    )
    if key not in _STORED:
        _STORED[key] = _stored(config, devices)
    return _STORED[key]


def _stored(config: RunConfig, devices: int) -> dict[str, int]:
    import jax.numpy as jnp

    from pretrain.plan.program import batch_shapes, bytes_a_device
    from pretrain.sharding import mesh as meshes
    from pretrain.sharding import place
    from pretrain.state import abstract, make_optimizer

    optimizer = make_optimizer(config, jnp.dtype("bfloat16"))
    mesh = meshes.abstract(config.mesh, devices)
    with place.use(mesh, resolved(config.rules), config.mesh.schedule):
        state = abstract(config, optimizer, jnp.dtype("bfloat16"), mesh)
    batch = sum(math.prod(shape) * dtype.itemsize for shape, dtype in batch_shapes(config).values())
    return {
        "parameters": bytes_a_device(state.model),
        "optimizer": bytes_a_device(state.optimizer),
        "host": bytes_a_device(state.optimizer, host=True),
        "batch": batch // shards(config, devices, "batch"),
    }


def memory(config: RunConfig, on: Slice, parts: dict[str, int]) -> Memory:
    """`parts`: what `stored` said."""
    devices = on.devices
    T, rows = config.data.sequence_length, config.batch.rows // config.batch.accumulate
    chunk = getattr(getattr(config.objective, "loss", None), "chunk", None)
    kept = accounting.memory(config.model, rows=rows, sequence_length=T, chunk=chunk)
    sums = 1 if config.batch.accumulate == 1 else 2
    return Memory(
        **parts,
        gradients=sums * parts["parameters"],
        activations=kept.activations // shards(config, devices, "batch", "sequence") + _scores(config, on, rows),
        logits=kept.logits // shards(config, devices, "batch", "vocab"),
        gathered=2 * 2 * _period_parameters(config, devices) // shards(config, devices, "kv_heads"),
    )


def _stacks(config: RunConfig) -> list[StackConfig]:
    return [s for s in (config.model.encoder, config.model.decoder) if s]


def _period_parameters(config: RunConfig, devices: int) -> int:
    """Of the experts those of one device."""
    p, blocks = accounting.parameters(config.model), [b for s in _stacks(config) for b in s.blocks]
    elsewhere = (1 - 1 / shards(config, devices, "expert")) * sum(_experts(b, config) for b in blocks)
    period = max(len(s.pattern) for s in _stacks(config))
    return int((p.attention + p.mlp - elsewhere) * period) // max(len(blocks), 1)


def _experts(block: BlockConfig, config: RunConfig) -> int:
    """Parameters of a layer that experts have."""
    if not isinstance(block.mlp, MoeConfig):
        return 0
    expert = block.mlp.expert
    return block.mlp.experts * (3 if expert.gated else 2) * expert.d_ff * config.model.d_model


def _scores(config: RunConfig, on: Slice, rows: int) -> int:
    """Of the layers that keep their attention scores at the same time, and of the mask that cuDNN reads."""
    T, parts = config.data.sequence_length, shards(config, on.devices, "batch", "length", "kv_heads")
    shared, gpu = shards(config, on.devices, "length"), on.chip.gpu is not None
    apart = shared > 1 and config.mesh.attention == "ring"
    tiled = T // shared // (1 + apart) % 128 == 0
    known, able = (_cudnn_fits, not apart) if gpu else (_splash_apart_fits if apart else _splash_fits, tiled)
    flash = known if able else None
    mixers = [
        [a for b in (s.pattern if s.remat else s.blocks) for a in (b.mixer, b.cross) if a] for s in _stacks(config)
    ]
    most = max(sum(a.heads for a in mixed if flash is None or not flash(a)) for mixed in mixers)
    masked = gpu and any(flash(a) for mixed in mixers for a in mixed if flash)
    mask = BIAS * masked * rows * T * T // shards(config, on.devices, "batch", "length")
    if apart:  # a block of queries against the keys of one device
        from pretrain.models.layers.ring import QUERIES

        parts *= max(T // shared // QUERIES, 1) * shared
    return SCORES * most * rows * T * T // parts + mask


def _splash_fits(a: AttentionConfig | MlaConfig) -> bool:
    """Whether the TPU's kernel knows it (`models.layers.splash.fits`)."""
    if isinstance(a, MlaConfig):
        return (a.nope_dim + a.rope_dim) % 64 == 0 and a.value_dim % 64 == 0
    return a.head_dim % 64 == 0 and not isinstance(a.position, Alibi | RelativeBias)


def _splash_apart_fits(a: AttentionConfig | MlaConfig) -> bool:
    """And in each turn of a ring (`models.layers.ring`)."""
    return _splash_fits(a) and (isinstance(a, MlaConfig) or a.window is None)


def _cudnn_fits(a: AttentionConfig | MlaConfig) -> bool:
    """Whether cuDNN knows it (`models.layers.cudnn.fits`)."""
    if isinstance(a, MlaConfig):
        return (width := a.nope_dim + a.rope_dim) == a.value_dim and width % 8 == 0 and width <= 128
    adorned = a.softcap is not None or a.sinks or isinstance(a.position, Alibi | RelativeBias)
    return a.head_dim % 8 == 0 and a.head_dim <= 128 and not adorned


def tokens(config: RunConfig) -> int:
    """That one step reads, in all stacks."""
    return config.batch.rows * sum(n for n in config.objective.lengths(config.data.sequence_length, config.model) if n)


def model_flops(config: RunConfig) -> float:
    """Of one step on all devices."""
    per_token = accounting.flops_per_token(config.model, config.data.sequence_length)
    return per_token * tokens(config) / len(_stacks(config))


def work(config: RunConfig, devices: int, parts: dict[str, int]) -> Work:
    useful = model_flops(config) / devices
    again = sum(sum(_again(b, s.remat, config)) for s in _stacks(config) for b in s.blocks)
    per_stack = tokens(config) / len(_stacks(config))
    return Work(
        model_flops=useful,
        flops=useful + again * per_stack / devices,
        narrow={s.matmul: n * per_stack / devices for s in _stacks(config) if (n := _narrow(s, config))},
        sent=_sent(config, devices),
        waiting=_waiting(config, devices),
        touched=2 * (parts["parameters"] + parts["optimizer"] + parts["host"]) + 2 * parts["parameters"],
        hosted=parts["host"],
    )


def _narrow(stack: StackConfig, config: RunConfig) -> float:
    """FLOPs of one token in 8 bits: forward, backward where gradients are too, and their part of what is repeated."""
    if stack.matmul == "float":
        return 0.0
    out, D, passes = 0.0, config.model.d_model, 1 if stack.matmul.endswith("_forward") else 1 + accounting.BACKWARD
    for block in stack.blocks:
        flops = accounting.eight_bit_flops(block, D)
        repeated = _again(block, stack.remat, config)[0] * flops / accounting.weight_flops(block, D)
        out += passes * flops + repeated
    return out


def _again(block: BlockConfig, remat: Remat | None, config: RunConfig) -> tuple[float, float]:
    """FLOPs of one token that the backward pass repeats, with weights and of attention: of the products whose results
    it needs and nobody kept."""
    if remat is None:
        return 0.0, 0.0
    D, kept = config.model.d_model, {*remat.save, *remat.offload}
    widths = accounting.tensors(block, D)
    inner = ("query", "key", "value", "mlp_up", "mlp_gate")
    flops = sum(2 * D * widths[name] for name in inner if name not in kept)
    if "attention_out" not in kept and block.mlp is not None:
        flops += 2 * D * widths["attention"]
    mixed = 0.0
    if "attention" not in kept and isinstance(block.mixer, AttentionConfig):
        causal = 0.5 if block.mixer.causal else 1.0
        mixed = 4 * block.mixer.heads * block.mixer.head_dim * config.data.sequence_length * causal
    return flops, mixed


def _sent(config: RunConfig, devices: int) -> float:
    """Bytes that leave a device: weights gathered forwards and backwards, gradients summed, activations of tensor
    parallelism between blocks; keys and values of shared rows, tokens to experts, micro-batches to the next stage."""
    sizes, experts = config.mesh.shape(devices), sum(_experts(b, config) for s in _stacks(config) for b in s.blocks)
    ring = {axis: (n - 1) / n for axis, n in sizes.items()}
    others = accounting.parameters(config.model).total - experts
    sent = _weights_sent(others, ("data", "expert"), 2 + 2, config, sizes)
    sent += _weights_sent(experts / sizes["expert"], ("data",), 2 + 1, config, sizes)
    tokens = config.batch.rows * config.data.sequence_length / shards(config, devices, "batch", "length")
    blocks = [b for s in _stacks(config) for b in s.blocks]
    sent += ring["tensor"] * tokens * sizes["context"] * config.model.d_model * 2 * len(blocks) * 12
    exchanged = sum(_exchanged(b, s.remat, config, sizes, tokens) for s in _stacks(config) for b in s.blocks)
    return sent + exchanged + _passed(config, sizes, tokens)


def _weights_sent(whole: float, copied: tuple[str, ...], times: int, config: RunConfig, sizes) -> float:
    """Of so many parameters, of which the devices along `copied` have copies. `times` they pass over the links, in
    bf16: gathered twice, and their gradients twice if they are all-reduced, once if they are reduce-scattered."""
    rules, again = resolved(config.rules), config.batch.accumulate
    whole /= sizes["stage"] * (sizes["tensor"] if "kv_heads" in rules.used else 1)
    parts = math.prod(sizes[m] for m in rules.stored.get("embed", ()))
    copies = math.prod(sizes[m] for m in copied if m in rules.used.get("batch", ()))
    if parts > 1:
        sent = again * (parts - 1) / parts * whole * 2 * times
    else:
        sent = again * (sizes["fsdp"] - 1) / sizes["fsdp"] * whole * 4 * 2
    return sent + again * (copies - 1) / copies * 2 * 4 * whole / sizes["fsdp"]


def _exchanged(block: BlockConfig, remat: Remat | None, config: RunConfig, sizes, tokens: float) -> float:
    """Of one block: keys and values twice, their gradients once in f32; tokens to other experts, once more if
    those compute again, and back, and their gradients."""
    tensors, sent = accounting.tensors(block, config.model.d_model), 0.0
    if (context := sizes["context"]) > 1:
        sent += (context - 1) * tokens * (tensors["key"] + tensors["value"]) / sizes["tensor"] * (2 + 2 + 4)
    if (expert := sizes["expert"]) > 1 and isinstance(block.mlp, MoeConfig):
        times = (4 if remat is None else 5) * block.mlp.router.top_k
        sent += times * (expert - 1) / expert * tokens * config.model.d_model * 2
    return sent


def _passed(config: RunConfig, sizes, tokens: float) -> float:
    """Of a pipeline: a stage's result and the queue move on, forwards and backwards, in every round."""
    if sizes["stage"] == 1:
        return 0.0
    rows = tokens * sizes["stage"] * config.model.d_model * 2
    return 4 * config.mesh.rounds * rows * len(_stacks(config)) / (sizes["tensor"] if config.rules == "fsdp_tp" else 1)


def _waiting(config: RunConfig, devices: int) -> float:
    """Ticks of a pipeline for each tick of work: stages wait until the first micro-batch reaches them."""
    stages = config.mesh.shape(devices)["stage"]
    items = stages * config.mesh.micro * config.mesh.rounds
    return (items + stages - 1) / items


def link_bandwidth(on: Slice) -> float:
    """Bytes per second of one device, where all devices work together."""
    return bandwidth(on.chip, on.nodes, on.chips)


def bandwidth(chip: Chip, nodes: int, devices: int) -> float:
    """Bytes per second of one device in a group that is spread over nodes: its ring enters and leaves each of them
    once, over the network cards of the group's GPUs there."""
    if nodes <= 1 or chip.slow_bandwidth is None:
        return chip.link_bandwidth
    return min(chip.link_bandwidth, chip.slow_bandwidth * devices / nodes)


def seconds(w: Work, on: Slice) -> tuple[float, float, float]:
    """Low, likely and high of one step."""
    compute, network, update = parts_of(w, on)
    low = max(w.waiting * as_bfloat16(w, on) / on.chip.peak, network, update)
    return low, max(low, compute + update + EXPOSED * network), compute / 0.8 + update + network


def as_bfloat16(w: Work, on: Slice, share: float = 1.0) -> float:
    """FLOPs in bfloat16 that take as long as those of the step, with this share of the chip's rate in 8 bits."""
    return w.flops - sum(flops * (1 - 1 / (share * on.chip.times(matmul))) for matmul, flops in w.narrow.items())


def parts_of(w: Work, on: Slice) -> tuple[float, float, float]:
    """Seconds of computation, of the links and of the update's memory traffic, the host's too."""
    return (
        w.waiting * as_bfloat16(w, on, EIGHT_BITS) / (on.chip.peak * EFFICIENCY),
        w.sent / link_bandwidth(on),
        w.touched / on.chip.memory_bandwidth + 2 * w.hosted / HOST_LINK,
    )
