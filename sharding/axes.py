"""The words for axes: logical axes name what a dimension means, mesh axes name where devices stand."""

from typing import Literal, get_args

MeshAxis = Literal["data", "stage", "fsdp", "context", "expert", "tensor"]
"""Outermost first: neighbours on `tensor` talk most and should be nearest."""

Axis = Literal[
    "batch",  # rows of the global batch
    "length",  # tokens of a row, inside attention and MLP
    "sequence",  # tokens of a row, between blocks (sharded further than `length` by sequence parallelism)
    "features",  # d_model of an activation
    "layers",  # periods of a scanned stack
    "embed",  # d_model of a weight
    "latent",  # inner width of a weight that is a product of two thinner ones
    "vocab",
    "kv_heads",
    "groups",  # query heads per kv head
    "head_dim",
    "mlp",  # d_ff
    "expert",  # experts of a mixture
    "table",  # rows of a table of learned positions
]

MESH_AXES: tuple[MeshAxis, ...] = get_args(MeshAxis)
AXES: tuple[Axis, ...] = get_args(Axis)
