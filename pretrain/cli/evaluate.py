from dataclasses import dataclass
from typing import Literal

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Loss, perplexity and bits per byte on the validation split.

    examples:
      pretrain evaluate smoke
      pretrain evaluate smoke --batches all                  the whole split
      pretrain evaluate smoke --step 40 --batches 4 --json
    """

    run: arguments.Run
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    batches: int | Literal["all"] | None = None
    """How many of the split, from its beginning. Default: the run's evals.batches, as while it trained."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if isinstance(self.batches, int) and self.batches < 1:
            raise UserError(f"batches={self.batches}: expected 1 or more, or all; leave it out for the run's own")
        run = runs.find(self.run)
        from pretrain.evaluate.perplexity import evaluate
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        output.show({"step": opened.step, **evaluate(opened, batches=self.batches)}, self.json)


COMMAND = Evaluate
