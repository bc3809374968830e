from dataclasses import dataclass

from pretrain.cli import arguments, output, runs
from pretrain.errors import CheckFailed, UserError

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Steps of a run computed again from its checkpoint: are they those of the log, and what does this one look like?

    examples:
      pretrain replay smoke --step 37
      pretrain replay smoke --step 37 --json
    """

    run: arguments.Run
    step: int
    """A logged one. It starts from the newest checkpoint before it."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if self.step < 1:
            raise UserError(f"step={self.step}: expected 1 or more; name a step of the log")
        run = runs.find(self.run)
        from pretrain.replay import replay

        found = replay(run, self.step)
        output.show(found, self.json, _lines(found))
        if wrong := found["differences"]:
            raise CheckFailed(
                *(
                    f"step {step}: {name} was logged as {logged}, found {value}; compare the hardware and versions in "
                    "run.json with this machine's"
                    for step, name, logged, value in wrong[:SHOWN]
                )
            )


def _lines(found: dict) -> list[str]:
    steps, different = found["step"] - found["from"], len({step for step, *_ in found["differences"]})
    same = f"{different} differ" if different else "all equal bit for bit"
    first = [f"first not finite in {found['first']}"] if found["first"] else []
    return [
        f"{steps} steps from the checkpoint of step {found['from']}, {found['compared']} of them logged: {same}",
        *first,
        *output.rows(found["values"]),
        f"pretrain data inspect {found['run']} --step {found['step']} shows its text",
    ]


COMMAND = Replay
