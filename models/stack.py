"""Layers one after another: a prefix, a scanned pattern, a suffix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.block import Block
from pretrain.models.cache import StackCache
from pretrain.models.config import AttentionConfig, BlockConfig, EmbedConfig, RelativeBias, StackConfig
from pretrain.models.init import Init
from pretrain.models.layers.embed import Entry
from pretrain.models.layers.moe import Losses
from pretrain.models.layers.norms import features
from pretrain.models.layers.rows import Rows
from pretrain.models.remat import rematerialise
from pretrain.sharding import pipeline, place, quantised


class Stack(nnx.Module):
    def __init__(self, config: StackConfig, embed: EmbedConfig, d_model: int, init: Init):
        self.config = config
        self.entry = Entry(config.positions, config.embed_norm, embed, d_model, init)
        self.relative = relative_table(config.relative, init)
        self.prefix = nnx.List([Block(b, d_model, init) for b in config.prefix])
        self.pattern = nnx.List([Block(b, d_model, init.stack(config.repeats)) for b in config.pattern])
        self.suffix = nnx.List([Block(b, d_model, init) for b in config.suffix])
        self.final_norm = features(config.final_norm, d_model, init) if config.final_norm else None

    def __call__(self, x_BTW: jax.Array, rows: Rows, cache: StackCache | None = None, key: jax.Array | None = None):
        """Returns (x_BTD, cache, losses) for embeddings in their own width."""
        keys = (None, None, None, None) if key is None else tuple(jax.random.split(key, 4))
        rows = replace(rows, relative=self.relative)
        x_BTD = self.entry(x_BTW, rows.positions_BT, keys[3])
        x_BTD, prefix, first = self._each(self.prefix, x_BTD, rows, cache and cache.prefix, keys[0])
        x_BTD, pattern, middle = self._scan(x_BTD, rows, cache and cache.pattern, keys[1])
        x_BTD, suffix, last = self._each(self.suffix, x_BTD, rows, cache and cache.suffix, keys[2])
        x_BTD = x_BTD if self.final_norm is None else self.final_norm(x_BTD)
        cache = None if cache is None else StackCache(prefix=prefix, pattern=pattern, suffix=suffix)
        return x_BTD, cache, added(first, middle, last)

    def _layer(self, block: Block, x_BTD, rows: Rows, cache, key):
        with quantised.products(self.config.matmul, key):
            return block(x_BTD, rows, cache, key)

    def _each(self, blocks, x_BTD, rows: Rows, caches, key):
        caches = caches or (None,) * len(blocks)
        keys = (None,) * len(blocks) if key is None else jax.random.split(key, max(len(blocks), 1))
        out, all_losses = [], []
        for block, cache, k in zip(blocks, caches, keys):

            def run(x, cache, block=block, k=k):
                x, cache, load = self._layer(block, x, rows, cache, k)
                return x, cache, block.losses(load)

            x_BTD, cache, losses = rematerialise(run, self.config.remat)(x_BTD, cache)
            out.append(cache)
            all_losses.append(losses)
        return x_BTD, tuple(out), added(*all_losses)

    def _scan(self, x_BTD, rows: Rows, caches, key):
        repeats, period = self.config.repeats, len(self.pattern)
        if not repeats or not period:
            return x_BTD, (), {}
        if place.stages() > 1:
            return self._pipeline(x_BTD, rows, caches, key)
        keys = None if key is None else jax.random.split(key, (repeats, period))

        def run(x, layer):
            blocks, caches, keys = layer
            out, all_losses = [], []
            for i, block in enumerate(blocks):
                k = None if keys is None else keys[i]
                x, cache, load = self._layer(block, x, rows, caches and caches[i], k)
                out.append(cache)
                all_losses.append(block.losses(load))
            return x, (tuple(out), added(*all_losses))

        layers = (self.pattern, caches, keys)
        run = rematerialise(run, self.config.remat)
        x_BTD, (caches, losses) = jax.lax.scan(run, x_BTD, layers, unroll=self.config.unroll)
        return x_BTD, caches, jax.tree.map(lambda x: x.sum(0), losses)

    def _pipeline(self, x_BTD, rows: Rows, caches, key):
        """The same, a part of the periods on each stage; dropout draws anew for each period and micro-batch."""
        if caches is not None:
            raise ValueError("found a cache with layers on several devices, expected whole stacks; generate on one")
        repeats, remat = self.config.repeats, self.config.remat
        spread = place.schedule().rounds > 1
        per_row, joined = rows.parts()

        def work(layers, x, per_row, micro):
            own = joined(per_row)

            def run(x, layer):
                blocks, number = layer
                k = None if key is None else jax.random.fold_in(jax.random.fold_in(key, number), micro)
                loads = []
                for i, block in enumerate(blocks):
                    x, _, load = self._layer(block, x, own, None, None if k is None else jax.random.fold_in(k, i))
                    loads.append(load)
                return x, tuple(loads)

            return jax.lax.scan(run if spread else rematerialise(run, remat), x, layers, unroll=self.config.unroll)

        layers = (self.pattern, place.staged(jnp.arange(repeats)))
        x_BTD, loads = pipeline.run(work, layers, x_BTD, per_row, lambda tick: rematerialise(tick, remat))
        blocks = tuple(self.pattern)
        losses = jax.vmap(lambda blocks, loads: added(*(b.losses(load) for b, load in zip(blocks, loads))))
        return x_BTD, (), jax.tree.map(lambda x: x.sum(0), losses(blocks, loads))


def relative_table(block: BlockConfig | None, init: Init) -> nnx.Param | None:
    """One number a bucket and head, for all layers."""
    if (
        block is None
        or not isinstance(block.mixer, AttentionConfig)
        or not isinstance(block.mixer.position, RelativeBias)
    ):
        return None
    mixer, kv_heads = block.mixer, block.mixer.kv_heads
    heads = ("kv_heads", kv_heads), ("groups", mixer.heads // kv_heads)
    return init.relative(("table", block.mixer.position.buckets), *heads)


def added(*parts: Losses) -> Losses:
    names = [name for part in parts for name in part]
    return {name: sum(part[name] for part in parts if name in part) for name in dict.fromkeys(names)}  # type: ignore


def unroll(stack: Stack) -> Stack:
    """The same stack with every period of the pattern as a layer of its own: faster steps, longer compilation."""
    layers = [jax.tree.map(lambda p, i=i: p[i], block) for i in range(stack.config.repeats) for block in stack.pattern]
    out = nnx.clone(stack)
    out.config = replace(
        stack.config, prefix=stack.config.prefix + stack.config.pattern * stack.config.repeats, pattern=(), repeats=0
    )
    out.prefix, out.pattern = nnx.List([*stack.prefix, *layers]), nnx.List([])
    return out
