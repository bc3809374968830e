"""What a TPU's compiler makes of one attention and of one product of experts, forward and backward, by whose kernel.

    python benchmarks/kernels.py [v5p:2x2x1]

Cycles are of what stands around the kernels, which no compiler times: copies, sums of parts, statistics. Temporaries in
MiB. Needs `pretrain[tpu]`; with `pretrain[tokamax]` its kernels too.
"""

import importlib.util
import os
import sys
from functools import partial

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from pretrain.models.layers import grouped, kernels
from pretrain.models.layers.kernels import Mask
from pretrain.plan import hlo
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp

ROWS, LENGTH, HEADS, WIDTH = 4, 4096, 32, 128
EXPERTS = {"Mixtral 8x22B": (36864, 6144, 16384, 4), "DeepSeek-V3": (73728, 7168, 2048, 128)}
"""Rows of tokens, model, hidden, experts of a device."""


def attention(q, k, v, segments, weigh):
    def total(q, k, v):
        mask = Mask(q_segments_BT=segments, kv_segments_BS=segments)
        o = kernels.attention(q, k, v, mask=mask, scale=WIDTH**-0.5)
        return jnp.sum((o * weigh).astype(jnp.float32))

    return jax.grad(total, (0, 1, 2))(q, k, v)


def product(multiply, x, w, sizes, weigh):
    def total(x, w):
        return jnp.sum((multiply(x, w, sizes) * weigh).astype(jnp.float32))

    return jax.grad(total, (0, 1))(x, w)


def line(title: str, function, shapes, mesh) -> None:
    layout = jax.sharding.NamedSharding(mesh, jax.P())
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for shape, dtype in shapes]
    alone = jax.shard_map(function, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    compiled = jax.jit(alone).lower(*given).compile()
    cycles, temporaries = hlo.read(compiled.as_text()).cycles, compiled.memory_analysis().temp_size_in_bytes
    print(f"{title:<40} {cycles / 1e6:8.2f} M cycles {temporaries / 2**20:8.0f} MiB", flush=True)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "v5p:2x2x1"
    device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    mesh = meshes.build(MeshConfig(fsdp=1), [device])
    half, whole = jnp.bfloat16, jnp.int32
    q, k = (ROWS, LENGTH, HEADS, 1, WIDTH), (ROWS, LENGTH, HEADS, WIDTH)
    for kind in ("jax", *(["tokamax"] if importlib.util.find_spec("tokamax") else [])):
        with place.use(mesh, fsdp(), MeshConfig(kernels=kind).schedule):
            arrays = ((q, half), (k, half), (k, half), ((ROWS, LENGTH), whole), (q, half))
            line(f"attention, {kind}", attention, arrays, mesh)
            for model, (n, D, F, E) in EXPERTS.items():
                arrays = (((n, D), half), ((E, D, F), half), ((E,), whole), ((n, F), half))
                if kind == "jax":
                    line(f"{model}, XLA's ragged_dot", partial(product, jax.lax.ragged_dot), arrays, mesh)
                line(f"{model}, {kind}", partial(product, grouped.grouped_matmul), arrays, mesh)


if __name__ == "__main__":
    main()
