"""Which group every parameter belongs to: covered, or an error."""

import re
from collections.abc import Iterable, Sequence

from pretrain.errors import UserError
from pretrain.optimizer.config import Group

LISTED = 8
"""Names in a message before "and N more"."""


def assign(groups: Sequence[Group], names: Sequence[str]) -> tuple[Group, ...]:
    """The group of every name: the first whose pattern is found in it.

    Raises:
        UserError: A name is in no group, or a group has no name (it matches none, or earlier groups take them all).
    """
    patterns = [re.compile(group.pattern) for group in groups]
    chosen = [next((i for i, pattern in enumerate(patterns) if pattern.search(name)), None) for name in names]
    found = []
    if missed := [name for name, i in zip(names, chosen) if i is None]:
        found.append(
            f"{listed(missed)} match no pattern of optimizer.groups; "
            'expected every parameter in one, end with Group(pattern="") for the rest'
        )
    for i, (group, pattern) in enumerate(zip(groups, patterns)):
        if i in chosen:
            continue
        taken = [name for name in names if pattern.search(name)]
        why = f"matches only {listed(taken)}, which earlier groups take" if taken else "matches no parameter"
        do = "move it up or remove it" if taken else f"remove it or match one of {listed(names)}"
        found.append(f"optimizer.groups.{i} pattern={group.pattern!r} {why}; expected at least one, {do}")
    if found:
        raise UserError(*found)
    return tuple(groups[i] for i in chosen if i is not None)


def listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
