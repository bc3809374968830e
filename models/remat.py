"""Rematerialisation as data: the names of tensors worth keeping."""

from collections.abc import Callable

from pretrain.models.config import TENSORS, Remat

FULL = Remat()
"""Keep nothing but the input of each period."""
SAVE_QKV = Remat(save=("query", "key", "value"))
SAVE_ATTENTION = Remat(save=("query", "key", "value", "attention"))
SAVE_DOTS = Remat(save=TENSORS)
"""Every matrix product: only element-wise work is done twice."""

PRESETS = {"none": None, "full": FULL, "save_qkv": SAVE_QKV, "save_attention": SAVE_ATTENTION, "save_dots": SAVE_DOTS}


def rematerialise(function: Callable, remat: Remat | None) -> Callable:
    """`function` whose backward pass computes again whatever `remat` does not name."""
    import jax  # configs read the presets above without it

    if remat is None:
        return function
    if remat.offload:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(remat.save),
            names_which_can_be_offloaded=list(remat.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = jax.checkpoint_policies.save_only_these_names(*remat.save)
    return jax.checkpoint(function, policy=policy, prevent_cse=False)
