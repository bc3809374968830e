from dataclasses import MISSING, dataclass
from typing import Any

from tyro.conf import Positional

from pretrain import presets
from pretrain.cli import arguments, flags, output
from pretrain.config import RunConfig
from pretrain.errors import UserError
from pretrain.models import accounting
from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.serial import KIND, changes, encode, flat, shown

DEFAULT_LENGTH = 2048
"""Tokens of a row for the FLOPs of a model whose config names no length."""


def model_of(config: presets.Preset) -> TransformerConfig:
    return config.model if isinstance(config, RunConfig) else config


def length_of(config: presets.Preset) -> int:
    if isinstance(config, RunConfig):
        return config.data.sequence_length
    positions = config.stack.positions
    return positions.length if isinstance(positions, LearnedPositions) else DEFAULT_LENGTH


def line(name: str, value: Any) -> str:
    """As the option that sets it would say it."""
    return f"{name} = {shown(value)}"


def difference(name: str, old: Any, new: Any) -> str:
    if MISSING in (old, new):
        return f"{line(name, old if new is MISSING else new)} ({'gone' if new is MISSING else 'new'})"
    return f"{line(name, old)} -> {shown(new)}"


@dataclass(frozen=True, kw_only=True)
class List:
    """Names of all configs that come with pretrain.

    examples:
      pretrain config list
    """

    json: arguments.Json = False

    def __call__(self) -> None:
        names = presets.names()
        output.show({"configs": names}, self.json, names)


@dataclass(frozen=True, kw_only=True)
class Show:
    """Every value of a config, with parameters and FLOPs. Any value can be changed: --optimizer.peak-lr 3e-4.

    examples:
      pretrain config show llama.llama2_7b --json
      pretrain config show runs.smoke --model.decoder.repeats 12 --optimizer.kind muon
      pretrain config show runs/smoke                    the config of a run, as it ran
    """

    config: arguments.Config
    sequence: int | None = None
    """Tokens of a row for the FLOPs. Default: the config's, else its learned positions, else 2048."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        config = presets.overrides(presets.load(self.config), self.overrides, ("sequence", "json"))
        if self.sequence is not None and self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: expected a positive number of tokens")
        model, length = model_of(config), self.sequence or length_of(config)
        facts = {
            "parameters": accounting.parameters(model).total,
            "parameters_active": accounting.active_parameters(model),
            "flops_per_token": accounting.flops_per_token(model, length),
            "config": encode(config),
        }
        head = [f"parameters        {facts['parameters']:,}"]
        if facts["parameters_active"] != facts["parameters"]:
            head.append(f"  of each token   {facts['parameters_active']:,}")
        head += [f"flops per token   {facts['flops_per_token']:.4g} forward and backward, rows of {length} tokens", ""]
        output.show(facts, self.json, head + [line(k, v) for k, v in _values(config).items()])


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What differs between two configs, or between a config and itself with options.

    examples:
      pretrain config diff runs.smoke runs.demo
      pretrain config diff llama.llama2_7b llama.llama3_8b --json
      pretrain config diff runs/smoke --steps 100        a run against the same with more steps
    """

    config: arguments.Config
    other: Positional[str | None] = None
    """Another CONFIG; the options change this one. Default: the first."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        first = presets.load(self.config)
        second = presets.overrides(presets.load(self.other or self.config), self.overrides, ("json",))
        found = changes(first, second)
        sides = {k: {"from": a, "to": b} for k, (a, b) in found.items()}
        facts = {"changes": {k: {s: v for s, v in both.items() if v is not MISSING} for k, both in sides.items()}}
        lines = [difference(k, a, b) for k, (a, b) in found.items()]
        output.show(facts, self.json, lines or ["no difference"])


@dataclass(frozen=True, kw_only=True)
class Why:
    """Where each changed value comes from: the preset, file or run, or the command line.

    examples:
      pretrain config why runs.smoke --optimizer.peak-lr 3e-4 --steps 100
      pretrain config why runs.smoke --field model.d_model
    """

    config: arguments.Config
    field: str | None = None
    """Only this field, changed or not."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        preset = presets.load(self.config)
        config = presets.overrides(preset, self.overrides, ("field", "json"))
        before, after, changed = _values(preset), _values(config), changes(preset, config)
        names = list(changed)
        if self.field is not None:
            wanted = self.field.replace("-", "_")
            names = [k for k in after if _is_at(k, wanted)]
            if not names:
                raise UserError(flags.no_such(wanted, after, "field", "pretrain config show CONFIG lists all"))
        source = presets.described(self.config)
        values = {k: _origin(k, before, after, k in changed, source) for k in names if k in after}
        lines = [f"{line(k, v['value'])}    {_told(v, source)}" for k, v in values.items()]
        output.show({"values": values}, self.json, lines or [f"every value is that of {source}"])


def _origin(name: str, before: dict, after: dict, changed: bool, source: str) -> dict[str, Any]:
    """`instead_of`: the value that the command line replaced, where there was such a field."""
    there = {"instead_of": before[name]} if changed and name in before else {}
    return {"value": after[name], "source": "command line" if changed else source, **there}


def _told(value: dict[str, Any], source: str) -> str:
    return value["source"] + (f"; {source}: {shown(value['instead_of'])}" if "instead_of" in value else "")


def _is_at(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _values(config: presets.Preset) -> dict[str, Any]:
    """Dotted name -> value; the name of a class only where another class could stand."""
    values, choices = flat(encode(config)), presets.settable(config)
    named = {k.removesuffix(f".{KIND}"): (k, v) for k, v in values.items()}
    return {name: v for name, (k, v) in named.items() if k != KIND and (name == k or name in choices)}


COMMAND = {"list": List, "show": Show, "diff": Diff, "why": Why}
