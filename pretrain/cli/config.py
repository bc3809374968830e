from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from pretrain import presets
from pretrain.cli import arguments, flags, output
from pretrain.config import RunConfig
from pretrain.errors import UserError
from pretrain.models import accounting
from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.serial import KIND, encode, flat

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
    """As the option that sets it would say it; a class stands at the field that holds it."""
    return f"{name.removesuffix(f'.{KIND}')} = {value}"


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
        head = [
            f"parameters        {facts['parameters']:,}",
            f"flops per token   {facts['flops_per_token']:.4g} forward and backward, rows of {length} tokens",
            "",
        ]
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
        changes = presets.changes(first, second)
        facts = {"changes": {k: {"from": a, "to": b} for k, (a, b) in changes.items()}}
        lines = [line(k, f"{a} -> {b}") for k, (a, b) in changes.items()]
        output.show(facts, self.json, lines or ["no difference"])


@dataclass(frozen=True, kw_only=True)
class Why:
    """Where each changed value comes from: the preset or the command line.

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
        before, after, changed = _values(preset), _values(config), presets.changes(preset, config)
        names = list(changed)
        if self.field is not None:
            wanted = self.field.replace("-", "_")
            names = [k for k in {**before, **after} if _is_at(k, wanted)]
            if not names:
                raise UserError(flags.no_such(wanted, after, "field", "pretrain config show CONFIG lists all"))
        values = {k: _origin(k, before, after, k in changed, self.config) for k in names}
        lines = [line(k, f"{v['value']}    {_told(v)}") for k, v in values.items()]
        output.show({"values": values}, self.json, lines or [f"every value is that of {self.config}"])


def _origin(name: str, before: dict, after: dict, changed: bool, preset: str) -> dict[str, Any]:
    source = "command line" if changed else f"preset {preset}"
    return {"value": after.get(name), "source": source, "preset": preset, "preset_value": before.get(name)}


def _told(value: dict[str, Any]) -> str:
    if value["source"] != "command line":
        return value["source"]
    return f"command line; preset {value['preset']}: {value['preset_value']}"


def _is_at(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _values(config: presets.Preset) -> dict[str, Any]:
    """Dotted name -> value; of class names only those where another class could stand."""
    values, choices = flat(encode(config)), presets.settable(config)
    return {k: v for k, v in values.items() if not k.endswith(KIND) or k.removesuffix(f".{KIND}") in choices}


COMMAND = {"list": List, "show": Show, "diff": Diff, "why": Why}
