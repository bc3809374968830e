"""Chips as numbers, and slices by the names that people type. Nothing here imports jax."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pretrain.errors import UserError
from pretrain.metrics.throughput import peak_flops
from pretrain.plan.gpus import Gpu

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Of one JAX device: a chip, but of tpu7x half of one."""

    name: str
    kind: str
    """`device_kind`, by which `metrics.throughput` knows the peak."""
    memory: float
    """Bytes that a program may use."""
    memory_bandwidth: float
    """Bytes per second."""
    link_bandwidth: float
    """Bytes per second that leave one device over all its links together."""
    eight_bits: Mapping[str, float] = field(default_factory=dict)
    """How often as fast as in bfloat16 it multiplies in int8 and in fp8; once where nothing is published."""
    clock: float | None = None
    """Cycles per second of the matrix units; None of a GPU, whose compiler counts no cycles."""
    dimensions: int | None = None
    """Of a slice's torus; None: no torus, a GPU."""
    devices: int = 1
    """JAX devices on a chip."""
    counted: int = 1
    """What the vendor's name counts on a chip: TensorCores of v4, v5p and tpu7x."""
    hosts: int = 4
    """Chips of one host."""
    node: int | None = None
    """GPUs that NVLink joins."""
    gpu: Gpu | None = None
    slow_bandwidth: float | None = None
    """Bytes per second of one GPU to other nodes."""
    compiler: Mapping[str, Any] = field(default_factory=dict)
    """Options with which a training step is compiled for it, by `plan` and by `train`."""

    @property
    def peak(self) -> float:
        """FLOP/s in dense bfloat16."""
        peak = peak_flops(self.kind)
        assert peak is not None
        return peak

    def times(self, matmul: str) -> float:
        """How often as fast as in bfloat16 it multiplies in this type."""
        return self.eight_bits.get(matmul.removesuffix("_forward"), 1)


# memory: what libtpu 0.0.52 calls "available HBM" when a program does not fit. Bandwidths: as the vendor publishes them
# (docs.cloud.google.com/tpu, pages v4 to tpu7x), NOT checked against these pages; the ICI figures there are of a chip
# and bidirectional, half of them is here.
# eight_bits: the same pages v5e (393 TOPS of int8), v6e (1836) and tpu7x (4614 TFLOP/s of fp8, of v5p and v6e no more
# than in bfloat16); 918 TOPS of int8 of v5p are Google's announcement. Of int8 on tpu7x nothing is published.
# clock: peak / (2 FLOP x multiply-adds a cycle), with 4 matrix units of 128 x 128 a TensorCore (v4, v5e, v5p) or 4 x
# 256 x 256 a device (v6e, tpu7x).
TPUS = (
    Chip(
        name="v4",
        kind="TPU v4",
        memory=30.75 * GIB,
        memory_bandwidth=1228e9,
        link_bandwidth=300e9,
        clock=1.05e9,
        dimensions=3,
        counted=2,
    ),
    Chip(
        name="v5e",
        kind="TPU v5 lite",
        memory=15.75 * GIB,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        eight_bits={"int8": 2},
        clock=1.5e9,
        dimensions=2,
    ),
    Chip(
        name="v5p",
        kind="TPU v5",
        memory=95.74 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=600e9,
        eight_bits={"int8": 2},
        clock=1.75e9,
        dimensions=3,
        counted=2,
        # Fusions may use all 64 MiB of the fast memory, by default 16: the step of Llama 2 7B (256 rows of 4096 on 64
        # chips) goes from 4.13 to 3.23 billion scheduled cycles.
        compiler={"xla_tpu_scoped_vmem_limit_kib": 65536},
    ),
    Chip(
        name="v6e",
        kind="TPU v6 lite",
        memory=31.25 * GIB,
        memory_bandwidth=1640e9,
        link_bandwidth=400e9,
        eight_bits={"int8": 2},
        clock=1.75e9,
        dimensions=2,
    ),
    Chip(
        name="tpu7x",
        kind="TPU7x",
        memory=94.75 * GIB,
        memory_bandwidth=3690e9,
        link_bandwidth=300e9,
        eight_bits={"fp8": 2},
        clock=2.2e9,
        dimensions=3,
        devices=2,
        counted=2,
    ),
)
# NVIDIA's data sheets H100 SXM, H200 SXM and HGX B200: the memory's bandwidth, NVLink in one direction, int8 and fp8.
# Another node is reached at 400 Gb/s a GPU, as in the vendor's DGX systems. Cores, clock, cache and memory: as XLA
# describes these GPUs (openxla/xla, xla/backends/gpu/target_config/specs); of H200's memory the data sheet's 141 GB,
# which is less. jax takes 0.75 of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; `launch` sets SHARE.
SHARE = 0.92
"""Of a GPU's memory that JAX takes."""


def _gpu(name: str, kind: str, memory_bandwidth: float, link_bandwidth: float, gpu: Gpu) -> Chip:
    return Chip(
        name=name,
        kind=kind,
        memory=SHARE * gpu.memory,
        memory_bandwidth=memory_bandwidth,
        link_bandwidth=link_bandwidth,
        eight_bits={"int8": 2, "fp8": 2},
        hosts=8,
        node=8,
        slow_bandwidth=50e9,
        gpu=gpu,
    )


H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=9, cores=132, clock=1.98e9, cache=50 * 2**20, memory=84942979072)
H200 = replace(H100, name="NVIDIA H200", memory=141 * 10**9)
B200 = Gpu(name="NVIDIA B200", capability=10, cores=148, clock=1.965e9, cache=132644864, memory=191514411008)
GPUS = (
    _gpu("h100", "H100", 3.35e12, 450e9, H100),
    _gpu("h200", "H200", 4.8e12, 450e9, H200),
    _gpu("b200", "B200", 7.7e12, 900e9, B200),
)
CHIPS = {chip.name: chip for chip in TPUS + GPUS}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "ironwood": "tpu7x", "trillium": "v6e", "v7x": "tpu7x"}

SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: (
        *((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
        *((8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24)),
    ),
}
"""Of slices with so many dimensions, the usual one of each number of chips."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    chip: Chip
    shape: tuple[int, ...]
    """Chips along each dimension of the torus; of GPUs their number."""

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def topology(self) -> str:
        """As the compiler calls it, `v5p:4x4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def described(self) -> dict[str, str]:
        """What `jax.experimental.topologies.get_topology_desc` takes. GPUs: pods x nodes x GPUs of a node."""
        chip = self.chip
        if chip.gpu is None:
            megacore = {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # else a v4 is two devices
            return {"platform": "tpu", "topology_name": self.topology, **megacore}
        target = chip.gpu.target(chip.memory_bandwidth)
        shape = f"1x{self.nodes}x{self.chips // self.nodes}"
        return {"platform": "cuda", "topology_name": chip.name, "topology": shape, "target_config": target}

    @property
    def nodes(self) -> int:
        """Over which GPUs are spread, as many on each; 1 of TPUs."""
        node = self.chip.node
        return 1 if node is None or self.chips <= node else self.chips // math.gcd(self.chips, node)

    @property
    def vendor(self) -> str:
        """As one orders it, `v5p-128`."""
        if self.chip.gpu is not None:
            return f"{self.chip.name}:{self.chips}"
        return f"{self.chip.name}-{self.chips * self.chip.counted}"

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chip.hosts)


def parse(on: str) -> Slice:
    """`v5p-128` (the vendor's name), `v5p:4x4x4`, `v5e:16`, `h100:16`. Raises UserError with the choices."""
    match = re.fullmatch(r"([a-z0-9]+?)(-|:)(\d+(?:x\d+)*)", on.strip().lower())
    name = match and ALIASES.get(match[1], match[1])
    if not match or name not in CHIPS:
        raise UserError(
            f"on={on}: found no such slice, expected a chip and a size; write v5p-128, v5p:4x4x4, v5e:16 or h100:16 "
            f"with one of {', '.join(CHIPS)}"
        )
    chip, sizes = CHIPS[name], tuple(map(int, match[3].split("x")))
    if 0 in sizes:
        raise UserError(f"on={on}: found a size of 0, expected 1 or more along each dimension; write {name}:16")
    if chip.dimensions is None:
        if len(sizes) > 1:
            raise UserError(f"on={on}: found a shape, GPUs have none; write {name}:{math.prod(sizes)}")
        return Slice(chip=chip, shape=sizes)
    if len(sizes) == 1:
        return Slice(chip=chip, shape=_shape_of(on, chip, match[2], sizes[0]))
    if len(sizes) != chip.dimensions:
        usual = "x".join(map(str, SHAPES[chip.dimensions][4]))
        raise UserError(
            f"on={on}: found {len(sizes)} dimensions, a slice of {name} has {chip.dimensions}; write {name}:{usual}"
        )
    return Slice(chip=chip, shape=sizes)


def _shape_of(on: str, chip: Chip, mark: str, count: int) -> tuple[int, ...]:
    """The usual shape of so many chips, or of what the vendor counts."""
    assert chip.dimensions is not None
    unit = chip.counted if mark == "-" else 1
    usual = {math.prod(shape) * unit: shape for shape in SHAPES[chip.dimensions]}
    if count not in usual:
        near = sorted(usual, key=lambda n: abs(n - count))[:3]
        names = ", ".join(f"{chip.name}{mark}{n}" for n in sorted(near))
        raise UserError(
            f"on={on}: no usual slice has that size; choose {names}, or name the shape as "
            f"{chip.name}:{'x'.join('4' * chip.dimensions)}"
        )
    return usual[count]


def compiler_options(kind: str) -> dict[str, Any] | None:
    """Of a device by its `device_kind`; None where there are none."""
    return next((dict(chip.compiler) for chip in TPUS if chip.kind == kind and chip.compiler), None)
