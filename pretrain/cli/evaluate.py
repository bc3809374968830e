from dataclasses import dataclass

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Loss, perplexity and bits per byte on the validation split.

    examples:
      pretrain evaluate smoke
      pretrain evaluate smoke --step 40 --batches 4 --json
    """

    run: arguments.Run
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    batches: int | None = None
    """How many. Default: as the run's config says."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if self.batches is not None and self.batches < 1:
            raise UserError(f"batches={self.batches}: expected 1 or more; leave it out for the run's own")
        run = runs.find(self.run)
        from pretrain.evaluate.perplexity import evaluate
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        output.show({"step": opened.step, **evaluate(opened, batches=self.batches)}, self.json)


COMMAND = Evaluate
