"""How a command ends badly without being our fault, and how a config says so. Every floor may use it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


class UserError(Exception):
    """The input is wrong. Each problem is one line: what was found, what was expected, what to do; exit code 2."""

    def __init__(self, *problems: str):
        if not problems or any("\n" in p for p in problems):
            raise ValueError(f"a UserError takes at least one problem, each on one line; got {problems!r}")
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


class CheckFailed(UserError):
    """A check that the user asked for did not hold (`doctor`, `export --check`, `certify`); exit code 3."""


def problems(config: Any, path: str = "") -> Iterator[str]:
    """Every check that does not hold in a tree of dataclasses, each with the path of the field it stands at.

    A dataclass states its checks in a method `checks() -> tuple[(holds, message), ...]`.
    """
    if isinstance(config, tuple):
        for i, item in enumerate(config):
            yield from problems(item, f"{path}.{i}" if path else str(i))
    if not is_dataclass(config):
        return
    for holds, message in getattr(config, "checks", tuple)():
        if not holds:
            yield f"{path}.{message}" if path else message
    for f in fields(config):
        yield from problems(getattr(config, f.name), f"{path}.{f.name}" if path else f.name)


def check(config: Any, path: str = "") -> None:
    """Raises one UserError with every problem of the tree."""
    if found := tuple(dict.fromkeys(problems(config, path))):
        raise UserError(*found)
