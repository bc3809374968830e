"""A model with a generator that shares its embeddings (ELECTRA) as two models, and back."""

from dataclasses import replace

import jax

from pretrain.errors import UserError
from pretrain.models import tree
from pretrain.models.config import GeneratorConfig, HeadConfig
from pretrain.models.transformer import Transformer

OWN = "generator/"


def apart(model: Transformer) -> tuple[Transformer, Transformer]:
    """(the model without its generator, the generator with embeddings of its own)."""
    params, small = tree.params(model), model.config.generates
    assert small is not None

    def part(config, prefix: str):
        def of(name: str, _):
            return params[prefix + name] if prefix + name in params else params[name]

        abstract = tree.abstract(config, model.dtype)
        return jax.tree.unflatten(
            jax.tree.structure(abstract), [of(name, p)[...] for name, p in tree.params(abstract).items()]
        )

    return part(replace(model.config, generator=None), ""), part(small, OWN)


def together(model: Transformer, generator: Transformer) -> Transformer:
    """One model again; raises UserError where the embeddings are not the same."""
    mine, theirs = tree.params(model), tree.params(generator)
    for name in (name for name in theirs if name.startswith("embed/")):
        if name not in mine or not bool((mine[name][...] == theirs[name][...]).all()):
            raise UserError(
                f"generator: found another {name} than the model's, expected the same; load one of them alone"
            )
    c = generator.config
    assert c.encoder is not None
    proposes = GeneratorConfig(d_model=c.d_model, encoder=c.encoder, head=c.head or HeadConfig(tied=True))
    config = replace(model.config, generator=proposes)
    abstract = tree.abstract(config, model.dtype)

    def of(name: str):
        return (theirs[name.removeprefix(OWN)] if name.startswith(OWN) else mine[name])[...]

    return jax.tree.unflatten(jax.tree.structure(abstract), [of(name) for name in tree.params(abstract)])
