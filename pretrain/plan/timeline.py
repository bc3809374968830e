"""Seconds of a step on GPUs, whose compiler estimates none: its schedule, walked with a clock.

Every operation takes as long as its arithmetic or its memory traffic, whichever is longer. A collective runs beside
what stands between its start and its end, after the one before it, and the clock waits for what is left of it.
"""

from dataclasses import dataclass

from pretrain.plan import hlo
from pretrain.plan.analytic import EFFICIENCY, KERNEL_EFFICIENCY, bandwidth
from pretrain.plan.chips import Chip

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id")


@dataclass(kw_only=True)
class Seconds:
    compute: float = 0.0
    """Of operations that arithmetic limits."""
    memory: float = 0.0
    """Of the others."""
    waiting: float = 0.0
    """For collectives."""
    links: float = 0.0
    """Of all collectives, hidden or not."""

    @property
    def total(self) -> float:
        return self.compute + self.memory + self.waiting

    def add(self, other: "Seconds", times: float = 1.0) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


def read(text: str, chip: Chip, nodes: list[int]) -> Seconds:
    """`nodes`: of each device of the program, in its order."""
    computations, entry = hlo.parse(text)
    return _Clock(computations, chip, nodes).walk(entry)


class _Clock:
    def __init__(self, computations: dict[str, list[hlo.Operation]], chip: Chip, nodes: list[int]):
        self.computations, self.chip, self.nodes = computations, chip, nodes
        self.shapes = {c: {o.name: o.shape for o in found} for c, found in computations.items()}

    def walk(self, name: str) -> Seconds:
        spent, free, ends = Seconds(), 0.0, {}
        for o in self.computations.get(name, ()):
            kind = o.code.removesuffix("-start").removesuffix("-done")
            if o.code == "while":
                body, turns = hlo.loop(o, self.computations)
                if turns != 0:
                    spent.add(self.walk(body), turns or 1)
            elif o.code in ("conditional", "call"):
                branches = [self.walk(c) for c in hlo.called(o)]
                spent.add(max(branches, key=lambda s: s.total, default=Seconds()))
            elif kind in hlo.KINDS and o.code.endswith("-done"):
                spent.waiting += max(0.0, ends.get(o.operands[0], 0.0) - spent.total)
            elif kind in hlo.KINDS:
                seconds = self._sending(o, kind, self.shapes[name])
                free = max(free, spent.total) + seconds
                ends[o.name] = free
                spent.links += seconds
                if o.code == kind:  # no end of its own
                    spent.waiting += free - spent.total
            elif o.code not in FREE and not o.code.endswith("-done"):
                self._run(o, self.shapes[name], spent)
        return spent

    def _sending(self, o: hlo.Operation, kind: str, shapes: dict[str, str]) -> float:
        over = hlo.spread(o.attributes, self.nodes)
        return hlo.wire(o, kind, shapes) / bandwidth(self.chip, over, hlo.groups(o.attributes)[1])

    def _run(self, o: hlo.Operation, shapes: dict[str, str], spent: Seconds) -> None:
        arithmetic = self._products(o, shapes) / (self.chip.peak * EFFICIENCY)
        if o.code == "custom-call":
            arithmetic += hlo.kernel_flops(o) / (self.chip.peak * KERNEL_EFFICIENCY)
        traffic = self._traffic(o, shapes) / self.chip.memory_bandwidth
        if arithmetic > traffic:
            spent.compute += arithmetic
        else:
            spent.memory += traffic

    def _products(self, o: hlo.Operation, shapes: dict[str, str]) -> float:
        """FLOPs of an operation and of what it fuses."""
        if o.code in ("dot", "convolution"):
            return hlo.product_flops(o, shapes)
        inside = (c for c in hlo.called(o) if c in self.computations)
        return sum(self._products(inner, self.shapes[c]) for c in inside for inner in self.computations[c])

    def _traffic(self, o: hlo.Operation, shapes: dict[str, str]) -> float:
        """Bytes read and written; of an array of which a fusion only takes or fills a slice, the slice."""
        inside = next((c for c in hlo.called(o) if self.computations.get(c)), None)
        if inside is None:
            return sum(hlo.size(shapes.get(n, "")) for n in o.operands) + hlo.size(o.shape)
        fused, sizes = self.computations[inside], self.shapes[inside]
        roots = fused[-1].operands if fused[-1].code == "tuple" else (fused[-1].name,)
        written = sum(self._written(n, fused, sizes) for n in roots)
        return written + sum(_read(p, fused) for p in fused if p.code == "parameter")

    def _written(self, name: str, fused: list[hlo.Operation], sizes: dict[str, str]) -> float:
        o = next((o for o in fused if o.name == name), None)
        if o is not None and o.code == "bitcast":
            return self._written(o.operands[0], fused, sizes)
        filled = o is not None and o.code == "dynamic-update-slice"
        return hlo.size(sizes.get(o.operands[1] if filled and o else name, ""))


def _read(array: hlo.Operation, fused: list[hlo.Operation]) -> float:
    """Bytes of a fusion's array that it reads."""
    total = 0.0
    for o in fused:
        if array.name not in o.operands:
            continue
        if o.code in ("dynamic-slice", "slice", "gather"):
            total += hlo.size(o.shape)
        elif o.code == "bitcast":
            total += _read(o, fused)
        elif not (o.code == "dynamic-update-slice" and o.operands[0] == array.name):
            return hlo.size(array.shape)
    return min(total, hlo.size(array.shape))
