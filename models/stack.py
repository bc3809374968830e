"""Layers one after another: a prefix, a scanned pattern, a suffix."""

from dataclasses import replace

import jax
from flax import nnx

from pretrain.models.block import Block
from pretrain.models.cache import StackCache
from pretrain.models.config import StackConfig
from pretrain.models.init import Init
from pretrain.models.layers.attention import Rows
from pretrain.models.layers.norms import Norm
from pretrain.models.remat import rematerialise


class Stack(nnx.Module):
    def __init__(self, config: StackConfig, d_model: int, init: Init):
        self.config = config
        self.embed_norm = Norm(config.embed_norm, d_model, init) if config.embed_norm else None
        self.prefix = nnx.List([Block(b, d_model, init) for b in config.prefix])
        self.pattern = nnx.List([Block(b, d_model, init.stack(config.repeats)) for b in config.pattern])
        self.suffix = nnx.List([Block(b, d_model, init) for b in config.suffix])
        self.final_norm = Norm(config.final_norm, d_model, init) if config.final_norm else None

    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: StackCache | None = None, key: jax.Array | None = None):
        """Returns (x_BTD, cache)."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        x_BTD = x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)
        x_BTD, prefix = self._each(self.prefix, x_BTD, rows, cache and cache.prefix, keys[0])
        x_BTD, pattern = self._scan(x_BTD, rows, cache and cache.pattern, keys[1])
        x_BTD, suffix = self._each(self.suffix, x_BTD, rows, cache and cache.suffix, keys[2])
        x_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        return x_BTD, None if cache is None else StackCache(prefix=prefix, pattern=pattern, suffix=suffix)

    def _each(self, blocks, x_BTD, rows: Rows, caches, key):
        caches = caches or (None,) * len(blocks)
        keys = (None,) * len(blocks) if key is None else jax.random.split(key, max(len(blocks), 1))
        out = []
        for block, cache, k in zip(blocks, caches, keys):

            def run(x, cache, block=block, k=k):
                return block(x, rows, cache, k)

            x_BTD, cache = rematerialise(run, self.config.remat)(x_BTD, cache)
            out.append(cache)
        return x_BTD, tuple(out)

    def _scan(self, x_BTD, rows: Rows, caches, key):
        repeats, period = self.config.repeats, len(self.pattern)
        if not repeats or not period:
            return x_BTD, ()
        keys = None if key is None else jax.random.split(key, (repeats, period))

        def run(x, layer):
            blocks, caches, keys = layer
            out = []
            for i, block in enumerate(blocks):
                x, cache = block(x, rows, caches and caches[i], None if keys is None else keys[i])
                out.append(cache)
            return x, tuple(out)

        layers = (self.pattern, caches, keys)
        return jax.lax.scan(
            rematerialise(run, self.config.remat), x_BTD, layers, unroll=min(self.config.unroll, repeats)
        )


def unroll(stack: Stack) -> Stack:
    """The same stack with every period of the pattern as a layer of its own: faster steps, longer compilation."""
    layers = [jax.tree.map(lambda p, i=i: p[i], block) for i in range(stack.config.repeats) for block in stack.pattern]
    out = nnx.clone(stack)
    out.config = replace(
        stack.config, prefix=stack.config.prefix + stack.config.pattern * stack.config.repeats, pattern=(), repeats=0
    )
    out.prefix, out.pattern = nnx.List([*stack.prefix, *layers]), nnx.List([])
    return out
