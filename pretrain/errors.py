"""How a command ends badly without being our fault, and how a config says so. Every floor may use it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

LONGEST = 4000
"""Characters of a problem: some lists of names are long, a hostile name can be longer than the memory of a terminal."""


class UserError(Exception):
    """The input is wrong. Each problem is one line: what was found, what was expected, what to do; exit code 2."""

    def __init__(self, *problems: str):
        if not problems:
            raise ValueError("a UserError takes at least one problem")
        super().__init__(*map(one_line, problems))

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


def one_line(text: str) -> str:
    """What a terminal shows as one line, whatever a file put into it: no line ends, no control characters."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


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
