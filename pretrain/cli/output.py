"""Results on stdout: for people, or one JSON value for scripts. Progress goes to stderr."""

import json
import sys
from typing import Any


def show(facts: dict[str, Any], as_json: bool, lines: list[str] | None = None) -> None:
    """`lines` are what people read; None: one `name  value` a line, without those that are None."""
    if as_json:
        print(json.dumps(facts))
    elif lines is None:
        rows = {name: value for name, value in flat(facts).items() if value is not None}
        width = max(map(len, rows), default=0) + 2
        print("\n".join(f"{name:<{width}}{number(value)}" for name, value in rows.items()))
    else:
        print("\n".join(lines))


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
