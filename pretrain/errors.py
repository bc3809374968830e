"""The two ways in which a command can end badly that are not our fault. Imports nothing; every floor may use it."""


class UserError(Exception):
    """The input is wrong. Each problem is one line with what was found, what was expected and what to do; exit code 2."""

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
