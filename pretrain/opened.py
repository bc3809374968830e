"""A finished or running run, opened for looking: its model, its tokenizer and the step they are of."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from pretrain import run as runs
from pretrain.checkpoint import layout, manifest, reading
from pretrain.config import RunConfig
from pretrain.data.corpus import corpus_folder
from pretrain.data.tokenizer import Tokenizer, begins_with_bos, load_tokenizer
from pretrain.errors import UserError
from pretrain.models import lora, tree
from pretrain.models.config import TransformerConfig
from pretrain.models.convert import load
from pretrain.models.transformer import Transformer
from pretrain.serial import changes, shown

WITHOUT_PARAMETERS = (*runs.SAFE, "model.init")
"""Fields that change no name and no shape of a parameter."""


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    path: epath.Path
    config: RunConfig | None
    """None: a folder in the Hugging Face layout."""
    model: Transformer
    tokenizer: Tokenizer | None
    step: int

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with bos, as in training or as the folder says."""
        return begins_with_bos(self.path) if self.config is None else self.config.data.corpus.add_bos


def open_run(path, *, step: int | None = None) -> OpenRun:
    """The newest checkpoint of a run, or the one of `step`, or a Hugging Face folder. Only parameters are read."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such directory, expected a run or a Hugging Face folder; check the path")
    if runs.read(path) is None:
        if not (path / "config.json").exists():
            raise UserError(f"{path}: found neither run.json nor config.json; expected a run or a Hugging Face folder")
        _, model = load(path)
        return OpenRun(path=path, config=None, model=model, tokenizer=_hf_tokenizer(path), step=0)
    config = runs.read_config(path)
    config.check()
    at = _choose(path, step)
    tokenizer = load_tokenizer(corpus_folder(config.data, path / "data") / "tokenizer")
    return OpenRun(path=path, config=config, model=read_model(config, path, at), tokenizer=tokenizer, step=at)


def read_model(config: RunConfig, run: epath.Path, step: int) -> Transformer:
    """The parameters of a checkpoint, whole on the first device, in f32."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree.abstract(config.model, jnp.float32)
    )
    return reading.read_part(run / "checkpoints" / str(step), {"model": model})["model"]


def _choose(run: epath.Path, step: int | None) -> int:
    newest = manifest.latest(run / "checkpoints")
    if newest is None:
        raise UserError(f"{run} has no finished checkpoint; expected one, train it with pretrain train --run {run}")
    if step is None or manifest.is_finished(run / "checkpoints" / str(step)):
        return newest if step is None else step
    raise UserError(f"{run} has no finished checkpoint {step}; the newest is {newest}, leave --step out to use it")


def _hf_tokenizer(path: epath.Path) -> Tokenizer | None:
    found = any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    return load_tokenizer(path) if found else None


def with_parameters(
    model: Transformer, source: str, layers: tuple[int, ...] | None = None
) -> tuple[Transformer, dict[str, Any]]:
    """`model` with the parameters of a run or a Hugging Face folder, each laid out as the one it replaces; and what the
    manifests of its checkpoints say about where they came from.

    Adapters that the source does not have stay as they began. Raises UserError with the fields of the model's config
    that differ, where names or shapes of parameters do.
    """
    opened = open_run(source)
    found = opened.model
    mine, theirs = layout.flatten(model), layout.flatten(found)
    if layers is not None:
        theirs = _mapped(theirs, mine, layers, source)
    begins = bool(model.config.adapters) and not found.config.adapters
    names = lora.plain_names(mine) if begins else dict(zip(mine, mine))
    wanted = layout.describe({name: array for name, array in zip(names.values(), mine.values()) if name})
    if wanted != layout.describe(theirs):
        raise UserError(_another_model(found.config, model.config, source))
    pairs = zip(names.values(), mine.values())
    arrays = [jax.device_put(theirs[name], a.sharding) if name else a for name, a in pairs]
    loaded = jax.tree.unflatten(jax.tree.structure(model), arrays)
    return lora.measured(loaded) if begins else loaded, _parent(opened, source)


def _mapped(theirs: layout.Arrays, mine: layout.Arrays, layers: tuple[int, ...], source: str) -> layout.Arrays:
    """`theirs`, each repeat of a pattern being the one that `layers` says, or that of `mine` where it says -1."""
    out = dict(theirs)
    for name, array in theirs.items():
        if "pattern" not in name.split("/") or name not in mine:
            continue
        if wrong := [i for i in layers if not -1 <= i < len(array)]:
            raise UserError(
                f"start_layers={layers}: found {wrong[0]}, expected -1 to {len(array) - 1}, the layers of {source}; "
                "choose among them"
            )
        out[name] = jnp.stack([array[i] if i >= 0 else jnp.asarray(mine[name][r]) for r, i in enumerate(layers)])
    return out


def _parent(opened: OpenRun, source: str) -> dict[str, Any]:
    if opened.config is None:
        return {"run": source, "step": None, "digest": None}
    step = opened.path / "checkpoints" / str(opened.step)
    return {"run": source, "step": opened.step, "digest": manifest.read(step).digest}


def _another_model(theirs: TransformerConfig, mine: TransformerConfig, source: str) -> str:
    fields = {f"model.{name}": sides for name, sides in changes(theirs, mine, inside=False).items()}
    fields = {name: sides for name, sides in fields.items() if not runs.under(name, WITHOUT_PARAMETERS)}
    named = [f"{name}={shown(there)}" for name, (there, _) in fields.items()]
    expected = ", ".join(shown(here) for _, (_, here) in fields.items())
    options = " ".join(f"--{n.replace('_', '-')} {shown(there)}" for n, (there, _) in fields.items())
    return f"start_from={source}: found {', '.join(named)}, expected {expected} as in this run; add {options}"
