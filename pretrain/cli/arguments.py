"""The arguments of one verb: a dataclass whose fields are options, checked all at once."""

import dataclasses
import inspect
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.conf import Positional

from pretrain.cli import flags
from pretrain.errors import UserError

T = TypeVar("T")
_POSITIONAL = Positional[str].__metadata__[0]  # pyright: ignore[reportAttributeAccessIssue]

Config = Positional[
    Annotated[str, tyro.conf.arg(metavar="CONFIG", help="A name (runs.smoke), a file that defines run(), or a run.")]
]
Run = Positional[Annotated[str, tyro.conf.arg(metavar="RUN", help="A run directory, or its name under runs/.")]]
Overrides = Annotated[tuple[str, ...], tyro.conf.Suppress]
"""A verb with a field `overrides` of this type takes every field of its config as an option."""
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON value for scripts.")]


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    annotation: Any
    positional: bool
    required: bool


def fields_of(cls: type) -> dict[str, Field]:
    hints, out = get_type_hints(cls, include_extras=True), {}
    for f in dataclasses.fields(cls):
        metadata = getattr(hints[f.name], "__metadata__", ())
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        annotation = hints[f.name].__origin__ if metadata else hints[f.name]
        out[f.name] = Field(f.name, annotation, _POSITIONAL in metadata, required)
    return out


def parse(cls: type[T], words: list[str], prog: str) -> T:
    """Raises UserError with every problem. A positional argument may be given as an option too (`--run DIR`)."""
    known, values, problems = fields_of(cls), {}, []
    wrong: dict[str, str] = {}
    rest = known.pop("overrides", None)
    overrides: list[str] = []
    slots = [f for f in known.values() if f.positional]
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not flags.is_flag(word):
            free = next((f for f in slots if f.name not in values), None)
            if free is None:
                problems.append(f"{word}: found one argument too many, expected {_usage(slots)}; see {prog} --help")
            else:
                values[free.name] = word
            continue
        name = flags.name_of(word)
        negated = name.removeprefix("no_")
        if name not in known and negated in known and known[negated].annotation is bool:
            values[negated] = False
        elif name in known:
            _set(known[name], word, queue, values, wrong)
        elif rest is not None:
            overrides += [word, *_take(queue, None)]
        else:
            problems.append(flags.no_such(name, known, "option", f"see {prog} --help"))
            _take(queue, None)
    missing = [f for f in known.values() if f.required and f.name not in values | wrong]
    problems += wrong.values()
    where = " before the options" if overrides else ""
    problems += [f"{_label(f)}: missing, {prog} needs it{where}; see {prog} --help" for f in missing]
    if problems:
        raise UserError(*problems)
    return cls(**values, **({} if rest is None else {"overrides": tuple(overrides)}))


def _set(field: Field, word: str, queue: list[str], values: dict, wrong: dict[str, str]) -> None:
    attached = word.split("=", 1)[1:]
    if field.annotation is bool and not attached:
        attached = [queue.pop(0)] if queue and queue[0].lower() in ("true", "false") else ["True"]
    words = attached or _take(queue, flags.arity(field.annotation))
    try:
        new = flags.value(field.annotation, words)
    except ValueError:
        wrong[field.name] = flags.mismatch(field.name, words, flags.describe(field.annotation))
        return
    values[field.name] = values.get(field.name, ()) + new if isinstance(new, tuple) else new


def _take(queue: list[str], most: int | None) -> list[str]:
    taken: list[str] = []
    while queue and not flags.is_flag(queue[0]) and (most is None or len(taken) < most):
        taken.append(queue.pop(0))
    return taken


def _label(field: Field) -> str:
    return field.name.upper() if field.positional else field.name


def _usage(slots: list[Field]) -> str:
    return " ".join(_label(f) for f in slots) or "options only"


def show_help(cls: type, prog: str) -> None:
    """Prints the options of a verb below its docstring."""
    try:
        tyro.cli(cls, args=["--help"], prog=prog, description=inspect.cleandoc(cls.__doc__ or ""))
    except SystemExit:
        return
