"""Results on stdout: for people, or one JSON value for scripts. Progress goes to stderr."""

import json
import sys
from typing import Any


def show(facts: dict[str, Any], as_json: bool, lines: list[str] | None = None) -> None:
    """`lines` are what people read; None: one `name  value` a line, without those that are None."""
    if as_json:
        print(json.dumps(facts))
    elif lines is None:
        print("\n".join(rows(facts)))
    else:
        print("\n".join(lines))


def rows(facts: dict[str, Any]) -> list[str]:
    """`name  value` of each that is not None."""
    values = {name: value for name, value in flat(facts).items() if value is not None}
    width = max(map(len, values), default=0) + 2
    return [f"{name:<{width}}{number(value)}" for name, value in values.items()]


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Objects in objects as dotted names."""
    out: dict[str, Any] = {}
    for name, value in facts.items():
        out |= {f"{name}.{k}": v for k, v in flat(value).items()} if isinstance(value, dict) else {name: value}
    return out


def number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def progress(line: str) -> None:
    """Replaces the line above on a terminal, silent in a log."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
