"""YAML of plain values: texts with line breaks as blocks, everything that could be misread in quotes."""

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/_][\w./+@-]*(:(?=\S)[\w./+@-]*)*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"}


def yaml(value: Any, indent: int = 0) -> str:
    return "\n".join(_lines(value, indent)) + "\n"


def _lines(value: Any, indent: int) -> list[str]:
    pad, out = " " * indent, []
    if isinstance(value, dict):
        for key, item in value.items():
            out += _entry(f"{pad}{_scalar(key)}:", item, indent)
    else:
        for item in value:
            if isinstance(item, (dict, list)) and item:
                first, *rest = _lines(item, indent + 2)
                out += [f"{pad}- {first.lstrip()}", *rest]
            else:
                out += _entry(f"{pad}-", item, indent)
    return out


def _entry(head: str, item: Any, indent: int) -> list[str]:
    if isinstance(item, (dict, list)) and item:
        return [head, *_lines(item, indent + 2)]
    if isinstance(item, str) and "\n" in item:
        body = [f"{' ' * (indent + 2)}{line}" if line else "" for line in item.rstrip("\n").split("\n")]
        return [f"{head} {'|' if item.endswith(chr(10)) else '|-'}", *body]
    return [f"{head} {_scalar(item)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value)
