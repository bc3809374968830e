"""What a compiled program does, read from the text of its scheduled, optimised HLO.

A loop's body counts as often as the loop turns. Cycles are the TPU compiler's own estimates of each fusion; it gives
none for collectives and for Pallas kernels. XLA's summaries (`cost_analysis`) are not used: they count a body once.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e8m0fnu", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 0.5),
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
NO_ESTIMATE = 2**50
"""Some fusions carry INT64_MAX."""
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w*)"')
_CALLS = re.compile(
    r"\b(?:calls|to_apply|branch_computations|true_computation|false_computation|called_computations)="
    r"\{?((?:%[\w.\-]+(?:, *)?)+)"
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    name: str
    shape: str
    code: str
    operands: tuple[str, ...]
    literal: str
    """What stands between the parentheses."""
    attributes: str


@dataclass(frozen=True, kw_only=True)
class Collective:
    kind: str
    axes: tuple[str, ...]
    """Mesh axes it runs along; empty where the text does not say."""
    size: int
    """Devices of a group."""
    asynchronous: bool
    count: float
    bytes: float
    """That leave one device."""
    nodes: int = 1
    """Over which a group's devices are spread."""


@dataclass(kw_only=True)
class Program:
    cycles: float = 0.0
    """Of all operations for which the compiler estimates them, on one device."""
    flops: float = 0.0
    """Of matrix products, on one device."""
    kernels: float = 0
    """Calls of Pallas kernels and of cuDNN's attention."""
    kernel_flops: float = 0.0
    """What the kernels say they do."""
    collectives: list[Collective] = field(default_factory=list)
    endless: int = 0
    """Loops whose turns are not known; they count once."""
    seldom: int = 0
    """Loops that an even load of the experts never enters; they count as nothing."""


def read(text: str, nodes: Sequence[int] = ()) -> Program:
    """`nodes`: of each device of the program, in its order; none where all are alike."""
    computations, entry = parse(text)
    walk = _Walk(computations, nodes)
    walk.visit(entry, 1.0, scope=entry, fused=False, hidden=False)
    walk.program.collectives = [
        Collective(kind=k, axes=a, size=n, nodes=over, asynchronous=hides, count=c, bytes=b)
        for (k, a, n, over, hides), (c, b) in sorted(walk.moved.items())
    ]
    return walk.program


def parse(text: str) -> tuple[dict[str, list[Operation]], str]:
    """Computations by name, and the entry's name. Metadata may break lines: only `}` alone ends a computation."""
    text = re.sub(r"/\*index=\d+\*/", "", text).replace("\n}}", "}}")
    found: dict[str, list[Operation]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if current is None:
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)
            if head and line.endswith("{") and "->" in line:
                current = found.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif re.match(r'\}(, execution_thread="\w+")?\s*$', line):
            current = None
        elif (operation := _operation(line.strip().removeprefix("ROOT "))) is not None:
            current.append(operation)
    return found, entry


def _operation(line: str) -> Operation | None:
    match = re.match(r"%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if end < 0 or opening < 0:
        return None
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Operation(
        name=match[1],
        shape=shape,
        code=rest[:opening],
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        literal=inside,
        attributes=rest[closing + 1 :],
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    return len(text) - 1


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    return [(t, [int(d) for d in dims.split(",")] if dims else []) for t, dims in _ARRAY.findall(shape) if t in BYTES]


def size(shape: str) -> float:
    """Bytes."""
    return sum(BYTES[t] * math.prod(dims) for t, dims in arrays(shape))


class _Walk:
    def __init__(self, computations: dict[str, list[Operation]], nodes: Sequence[int]):
        self.computations, self.nodes = computations, nodes
        self.shapes = {c: {o.name: o.shape for o in found} for c, found in computations.items()}
        self.program = Program()
        self.moved: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.seen: set[tuple[str, str]] = set()

    def visit(self, name: str, times: float, *, scope: str, fused: bool, hidden: bool) -> None:
        """`scope`: the loop's body, in which a channel is one collective however many fusions hide it."""
        for o in self.computations.get(name, ()):
            if o.code == "while":
                self._loop(o, times, hidden)
                continue
            if o.code in ("dot", "convolution"):
                self.program.flops += times * product_flops(o, self.shapes[name])
            base = o.code.removesuffix("-start")
            if base in KINDS:
                self._move(o, base, name, times, scope, fused, hidden)
            if o.code == "custom-call" and _KERNEL.search(o.attributes):
                self.program.kernels += times
                self.program.kernel_flops += times * kernel_flops(o)
            if not fused:
                cycles = _number(r'"estimated_cycles":"(\d+)"', o.attributes)
                self.program.cycles += times * cycles if cycles < NO_ESTIMATE else 0
            hides = hidden or o.code.endswith("-start") or self._spread(o)
            callees = list(called(o))
            share = times / len(callees) if o.code == "conditional" else times  # branches: one of them each time
            for callee in callees:
                inside = fused or o.code.startswith("fusion")
                self.visit(callee, share, scope=scope, fused=inside, hidden=hides)

    def _loop(self, o: Operation, times: float, hidden: bool) -> None:
        body, turns = loop(o, self.computations)
        self.program.endless += turns is None
        self.program.seldom += turns == 0
        if turns != 0:
            self.visit(body, times * (turns or 1), scope=f"{o.name}/{body}", fused=False, hidden=hidden)

    def _spread(self, o: Operation) -> bool:
        """Whether a collective in it is one that computation hides."""
        return o.code == "fusion" and any(
            "async_collective" in callee or any("AsyncCollective" in p.attributes for p in self.computations[callee])
            for callee in called(o)
            if callee in self.computations
        )

    def _move(
        self, o: Operation, kind: str, computation: str, times: float, scope: str, fused: bool, hidden: bool
    ) -> None:
        """A channel tells the pieces of one collective that is spread; those of a `shard_map` share a channel."""
        channel = re.search(r"channel_id=(\d+)", o.attributes)
        key = (scope, f"{channel[1]} {o.shape}" if channel and fused and hidden else f"{computation}/{o.name}")
        if key in self.seen:
            return
        self.seen.add(key)
        axes, n = groups(o.attributes)
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        hides = hidden or o.code.endswith("-start")
        sums = self.moved[kind, axes, n, spread(o.attributes, self.nodes), hides]
        sums[0] += times
        sums[1] += times * wire(o, kind, self.shapes[computation])


def wire(o: Operation, kind: str, shapes: dict[str, str]) -> float:
    """Bytes of a collective that leave one device."""
    given = sum(size(shapes.get(n, "")) for n in o.operands)
    if kind == "ragged-all-to-all":  # from rows to places for more, or back
        given = min(size(shapes.get(n, "")) for n in o.operands[:2])
    got = size(o.shape) - (given if o.code == "all-gather-start" else 0)
    n = groups(o.attributes)[1]
    share = (n - 1) / n if n else 1
    return {"all-gather": got * share, "all-reduce": 2 * given * share, "collective-permute": given}.get(
        kind, given * share
    )


def loop(o: Operation, computations: dict[str, list[Operation]]) -> tuple[str, float | None]:
    """The body of a loop and its turns: None where they are not known, 0 where an even load does not enter it."""
    from pretrain.sharding.expert import SELDOM

    body, condition = (re.search(rf"{k}=%([\w.\-]+)", o.attributes) for k in ("body", "condition"))
    assert body is not None
    if re.search(rf'op_name="[^"]*\b{SELDOM}\b', o.attributes):
        return body[1], 0
    turns = _number(r'"known_trip_count":\{"n":"(\d+)"', o.attributes)
    return body[1], turns or (_turns(computations.get(condition[1], [])) if condition else None)


def _turns(condition: list[Operation]) -> float | None:
    """Of a loop that counts from 0 up to a constant; None where it is another."""
    operations = {o.name: o for o in condition}
    for o in operations.values():
        if o.code == "compare" and "direction=LT" in o.attributes:
            bounds = [operations[n] for n in o.operands if n in operations and operations[n].code == "constant"]
            return float(bounds[0].literal) if bounds and bounds[0].literal.isdigit() else None
        if o.code == "fusion":
            constants = [n for n in o.operands if n in operations and operations[n].code == "constant"]
            if len(constants) == 1 and operations[constants[0]].literal.isdigit():
                return float(operations[constants[0]].literal)
    return None


def called(o: Operation) -> Iterator[str]:
    codes = ("fusion", "fusion-start", "call", "conditional", "async-start", "map")
    if o.code in codes or o.code.endswith("call-start"):
        for listed in _CALLS.findall(o.attributes):
            yield from re.findall(r"%([\w.\-]+)", listed)


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    return float(match[1]) if match else 0.0


def kernel_flops(o: Operation) -> float:
    """What a kernel says it does. cuDNN's attention says shapes and mask: two products forward, five backward, of what
    causality or its window leaves."""
    said = re.search(
        r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\["(\d+)", ?"(\d+)", ?"(\d+)", ?"(\d+)"\]', o.attributes
    )
    if said is None:
        return _number(r'"flops":"?(\d+)', o.attributes)
    B, N, T, S = map(int, said.groups())
    window = _number(r'"sliding_window_length": ?(\d+)', o.attributes)
    keys = min(S / 2, window or S) if "CAUSAL" in o.attributes else S
    return 2 * (5 if "Backward" in o.attributes else 2) * B * N * T * keys * arrays(o.shape)[0][1][-1]


def groups(attributes: str) -> tuple[tuple[str, ...], int]:
    """(mesh axes, devices of one group) of a collective, in any of the ways in which XLA writes its groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return (), len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return (), int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes)
    if not named:
        pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]+)\}", attributes)
        return (), 1 + pairs[1].count("},{") if pairs else 0
    sizes = {k: int(n) for k, n in re.findall(r"'?([\w]+)'?=(\d+)", named[1])}
    n, axes = 1, []
    for part in named[2].split(","):
        axis = re.match(r"\s*'?(\w+?)'?(?::\(\d+\)(\d+))?'?\s*$", part)
        if axis and axis[1] in sizes:
            axes.append(axis[1])
            n *= int(axis[2]) if axis[2] else sizes[axis[1]]
    return tuple(axes), n


def spread(attributes: str, nodes: Sequence[int]) -> int:
    """Nodes of the devices of one group, or of two that pass something on."""
    if not nodes:
        return 1
    if pairs := re.search(r"source_target_pairs=\{\{([\d,{}]+)\}\}", attributes):
        found = (pair.split(",") for pair in pairs[1].split("},{"))
        return max(len({nodes[int(d)] for d in pair}) for pair in found)
    return len({nodes[d] for d in _members(attributes, len(nodes))})


def _members(attributes: str, devices: int) -> list[int]:
    """Devices of the first group; all where the text does not say."""
    import numpy as np

    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(d) for d in listed[1].split(",")]
    order = np.arange(devices)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        grid = order.reshape([int(n) for n in iota[3].split(",")])
        grid = grid.transpose([int(d) for d in iota[4].split(",")]) if iota[4] else grid
        return grid.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    axes, n = groups(attributes)
    sizes = {
        k: int(size) for k, size in re.findall(r"'?(\w+)'?=(\d+)", attributes.partition("mesh[")[2].partition("]")[0])
    }
    if math.prod(sizes.values()) != devices or math.prod(sizes[a] for a in axes) != n:  # another order, parts of axes
        return order.tolist()
    index = tuple(slice(None) if axis in axes else 0 for axis in sizes)
    return order.reshape(list(sizes.values()))[index].reshape(-1).tolist()


def product_flops(o: Operation, shapes: dict[str, str]) -> float:
    """Two for every multiply-add; of a convolution that stands for a matrix product, without the padding."""
    out, left = arrays(o.shape), arrays(shapes.get(o.operands[0], "")) if o.operands else []
    if not out or not left:
        return 0.0
    if o.code == "dot":
        listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", o.attributes)
        inner = math.prod(left[0][1][int(d)] for d in listed[1].split(",") if d) if listed else 1
        return 2.0 * math.prod(out[0][1]) * inner
    return _convolution_flops(o, left[0][1], arrays(shapes.get(o.operands[1], ""))[0][1], out[0][1])


def _convolution_flops(o: Operation, left: list[int], right: list[int], out: list[int]) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", o.attributes)
    if labels is None:
        return 0.0
    window = re.search(r"window=\{([^}]*)\}", o.attributes)
    spatial = sum(c.isdigit() for c in labels[1])

    def of(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\dx_\-]+)", window[1] if window else "")
        return found[1].split("x") if found else [default] * spatial

    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]
    rows = zip(of("size", "1"), of("stride", "1"), of("pad", "0_0"), of("lhs_dilate", "1"), of("rhs_dilate", "1"))
    for i, (width, stride, pad, spread, step) in enumerate(rows):
        n_in, n_out = left[labels[1].index(str(i))], out[labels[3].index(str(i))]
        numbers = (int(width), int(stride), int(pad.split("_")[0]), int(spread), int(step))
        flops *= _pairs(n_in, n_out, *numbers)
    batches = re.search(r"batch_group_count=(\d+)", o.attributes)
    return flops / int(batches[1]) if batches else flops


def _pairs(n_in: int, n_out: int, width: int, stride: int, low: int, spread: int, step: int) -> int:
    """How often an element of the window meets one of the input rather than padding or a gap."""
    if n_out * width > 4_000_000:
        return n_out * width
    span = (n_in - 1) * spread + 1
    places = (o * stride + k * step - low for o in range(n_out) for k in range(width))
    return sum(0 <= p < span and p % spread == 0 for p in places)
