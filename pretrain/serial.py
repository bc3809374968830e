"""Configs to JSON and back. Only classes that the annotations of the config name can come out: no code from a file."""

import json
import sys
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pretrain.errors import UserError

KIND = "kind_of"
FROM_SHOW = "take the value from `pretrain config show`"


def encode(value: Any) -> Any:
    """JSON values; a dataclass becomes an object that says its class."""
    if is_dataclass(value):
        return {KIND: type(value).__name__, **{f.name: encode(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if hasattr(value, "items"):
        return {k: encode(v) for k, v in value.items()}
    return value


def decode(data: Any, annotation: Any, path: str = "config") -> Any:
    """The value that `encode` wrote. Raises UserError with the paths of all that does not fit the annotation."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(data, args, path)
    if origin is Literal:
        return _expect(data in args, data, data, _described((annotation,)), path)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _decode_class(data, annotation, path)
    if origin is tuple:
        _expect(isinstance(data, list), data, data, "a list", path)
        each = args[:1] * len(data) if len(args) == 2 and args[1] is ... else args
        _expect(len(data) == len(each), data, data, f"{len(each)} values", path)
        return tuple(_parts(dict(enumerate(zip(data, each))), path).values())
    if origin is not None and hasattr(origin, "items"):
        _expect(isinstance(data, dict), data, data, "an object", path)
        return _parts({k: (v, args[1]) for k, v in data.items()}, path)
    if annotation is float:
        fits = type(data) in (int, float) and abs(data) < sys.float_info.max  # no NaN, no infinity
        return _expect(fits, data, lambda: float(data), "a number", path)
    if annotation in (int, str, bool, type(None)):
        wanted = type(None) if annotation is None else annotation
        fits = type(data) is wanted and (wanted is not int or -(2**63) <= data < 2**63)
        return _expect(fits, data, data, _described((wanted,)), path)
    raise TypeError(f"{path}: no way to read a {annotation}")


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """An encoded config as dotted names. A list of plain values stays whole."""
    nested = isinstance(data, list) and any(isinstance(item, (dict, list)) for item in data)
    items = data.items() if isinstance(data, dict) else enumerate(data) if nested else None
    if items is None:
        return {path: data}
    return {k: v for name, value in items for k, v in flat(value, f"{path}.{name}" if path else str(name)).items()}


def changes(old: Any, new: Any, *, inside: bool = True) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every field that differs; a class stands at the field that holds it.

    MISSING: there is no such field on that side. `inside=False` leaves out what is below a class that differs.
    """
    a, b = ({k.removesuffix(f".{KIND}"): v for k, v in flat(encode(config)).items()} for config in (old, new))
    found = {k: (a.get(k, MISSING), b.get(k, MISSING)) for k in {**b, **a} if a.get(k, MISSING) != b.get(k, MISSING)}
    return {k: sides for k, sides in found.items() if inside or not _below(k, found)}


def shown(value: Any) -> str:
    """A value on one line."""
    text = "nothing" if value is MISSING else str(value)
    return text if text and text.isprintable() and text == text.strip() else json.dumps(text, ensure_ascii=False)


def _below(name: str, names: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in names for i in range(1, len(parts)))


def _expect(holds: bool, data: Any, value: Any, wanted: str, path: str) -> Any:
    if not holds:
        raise UserError(f"{path}: found {str(data)[:60]!r}, expected {wanted}; {FROM_SHOW}")
    return value() if callable(value) else value


def _decode_union(data: Any, args: tuple, path: str) -> Any:
    for a in args:
        if isinstance(a, type) and is_dataclass(a) and isinstance(data, dict) and data.get(KIND) == a.__name__:
            return _decode_class(data, a, path)
    problem = None
    for a in args:
        if is_dataclass(a):
            continue
        try:
            return decode(data, a, path)
        except UserError as error:
            problem = error
    found = data.get(KIND) if isinstance(data, dict) else data
    raise UserError(f"{path}: found {str(found)[:60]!r}, expected {_described(args)}; {FROM_SHOW}") from problem


def _described(annotations: tuple) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    out = []
    for a in annotations:
        out += map(str, get_args(a)) if get_origin(a) is Literal else [words.get(a, getattr(a, "__name__", str(a)))]
    return " or ".join(out)


def _parts(parts: Mapping[Any, tuple[Any, Any]], path: str) -> dict[Any, Any]:
    """Each (data, annotation) decoded. Raises one UserError with the problems of all."""
    values, problems = {}, []
    for key, (data, annotation) in parts.items():
        try:
            values[key] = decode(data, annotation, f"{path}.{key}")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return values


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode_class(data: Any, cls: type, path: str) -> Any:
    _expect(isinstance(data, dict) and data.get(KIND, cls.__name__) == cls.__name__, data, data, cls.__name__, path)
    known = {f.name: f for f in fields(cls)}
    problems = [f"{path}.{k}: no such field of {cls.__name__}; remove it" for k in data if k not in known and k != KIND]
    problems += [
        f"{path}.{n}: missing, {cls.__name__} needs it; add it" for n in known if n not in data and _required(known[n])
    ]
    values, hints = {}, _hints(cls)
    try:
        values = _parts({k: (v, hints[k]) for k, v in data.items() if k in known}, path)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    return cls(**values)


def _required(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING
